"""One step from noise to a picture.

The pictures are samples of a flow: the network says where a latent is heading, and a step goes a fraction of
the way. Noise is a function of the seed and the position, so nobody has to have drawn what came before.
Sources: Lipman et al., "Flow matching for generative modeling", 2023; Ho and Salimans, "Classifier-free
diffusion guidance", 2022.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from workloads import exact
from workloads.diffusion.input import LATENT_UNITS, SIZE, SampleInput
from workloads.diffusion.network import FREQUENCIES, NO_CLASS, shapes, velocity
from workloads.errors import ModelRefused
from workloads.lm.manifest import WEIGHTS_FILE
from workloads.normals import normals
from workloads.tensorfile import read_places

__all__ = ["Sampler", "load_weights", "noise"]


class _Exact:
    """The network's operators in one exact precision."""

    dtype = torch.float64

    def __init__(self, precision: exact.Precision) -> None:
        self._precision = precision

    def conv2d(self, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        return exact.conv2d(x, weight, bias, padding=padding, precision=self._precision)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return exact.linear(x, weight, bias, precision=self._precision)

    def group_norm(self, x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        return exact.group_norm(x, groups, weight, bias, epsilon=epsilon)

    def silu(self, x: Tensor) -> Tensor:
        return exact.silu(x)


class _Native:
    """The same by torch's own kernels, in float32."""

    dtype = torch.float32

    def conv2d(self, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        return F.conv2d(x, weight, bias, padding=padding)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    def group_norm(self, x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        return F.group_norm(x, groups, weight, bias, epsilon)

    def silu(self, x: Tensor) -> Tensor:
        return F.silu(x)


class Sampler:
    """The velocity network.

    Args:
        weights: as `workloads.diffusion.network.shapes`, finite.
        precision: of everything that contracts; None for torch's own kernels.
    """

    def __init__(self, weights: dict[str, Tensor], precision: exact.Precision | None) -> None:
        self._operators = _Native() if precision is None else _Exact(precision)
        self._weights = {name: weight.to(self._operators.dtype) for name, weight in weights.items()}

    def step(self, job: SampleInput, label: int, step: int, latent: Tensor) -> tuple[Tensor, ...]:
        """Take one step.

        Args:
            job: what is asked for.
            label: the picture's class.
            step: its number, from 0.
            latent: (`SIZE`, `SIZE`) float32, before the step.

        Returns:
            The predicted velocity (`SIZE`, `SIZE`) float64, the latent after the step, float32, and the
            network's last hidden state.

        Raises:
            NumericsRefused: the latent holds NaN, Inf or what exact arithmetic does not cover.
        """
        labels = torch.tensor([label, NO_CLASS])
        steps = torch.tensor(float(job.steps), dtype=torch.float64)
        waves = _waves(torch.tensor([float(step)], dtype=torch.float64) / steps).to(self._operators.dtype)
        both, hidden = velocity(
            self._operators,
            self._weights,
            latent.to(self._operators.dtype).expand(2, 1, SIZE, SIZE),
            waves.expand(2, -1),
            labels,
        )
        given, free = both[:, 0].to(torch.float64).unbind()
        guidance = torch.tensor(float(job.guidance_milli), dtype=torch.float64) / 1000.0
        predicted = free + (given - free) * guidance
        return predicted, advance(latent, predicted, job.steps), hidden


def advance(latent: Tensor, predicted: Tensor, steps: int) -> Tensor:
    """The latent one step of ``steps`` further along a velocity, as float32."""
    whole = torch.tensor(float(steps), dtype=torch.float64)
    return (latent.to(torch.float64) + predicted / whole).to(torch.float32)


def noise(job: SampleInput, picture: int) -> Tensor:
    """What a picture is drawn out of: (`SIZE`, `SIZE`) float32, standard normal."""
    drawn = normals(job.seed, LATENT_UNITS, (job.first_picture + picture, 0))
    return drawn.to(torch.float32).reshape(SIZE, SIZE)


def load_weights(model_dir: Path) -> dict[str, Tensor]:
    """The network's weights as float32.

    Raises:
        ModelRefused: the file is broken, or doesn't hold exactly this network's tensors, finite.
    """
    path = model_dir / WEIGHTS_FILE
    expected = shapes()
    found = {place.name: tuple(place.shape) for place in read_places(path)}
    if found != expected:
        differing = sorted(name for name in found.keys() | expected if found.get(name) != expected.get(name))
        name = differing[0]
        raise ModelRefused(
            f"{WEIGHTS_FILE}: {name} has shape {found.get(name)}, must be {expected.get(name)}"
        )
    weights = {name: weight.to(torch.float32) for name, weight in load_file(path).items()}
    for name, weight in weights.items():
        if not bool(torch.isfinite(weight).all()):
            raise ModelRefused(f"{WEIGHTS_FILE}: {name} holds NaN or Inf")
    return weights


def _waves(times: Tensor) -> Tensor:
    octaves = torch.tensor(
        [math.pi * 2.0**power for power in range(-1, FREQUENCIES - 1)], dtype=torch.float64
    )
    angles = times[:, None] * octaves
    return torch.cat([exact.sin(angles), exact.cos(angles)], dim=1)
