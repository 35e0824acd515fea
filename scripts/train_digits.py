"""Trains the digit sampler that ships in ``workloads/models/digits-8x8``; needs scikit-learn for its digits.

    pip install p2p-node[train]
    python scripts/train_digits.py OUT_DIR [--steps 3000] [--seed 0]

Flow matching: the network learns the velocity from noise to picture along straight lines, with the class
left out one time in ten so that guidance has something to differ from. Weights are a running mean over the
last steps, in float16: they are only numbers, which exact arithmetic takes as they are.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from workloads.diffusion.input import SIZE
from workloads.diffusion.network import FREQUENCIES, NO_CLASS, shapes, velocity

BATCH = 128
LEARNING_RATE = 2e-3
DECAY = 0.999
UNCONDITIONAL = 0.1


class Native:
    """torch's own operators."""

    def conv2d(self, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        return functional.conv2d(x, weight, bias, padding=padding)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.linear(x, weight, bias)

    def group_norm(self, x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        return functional.group_norm(x, groups, weight, bias, epsilon)

    def silu(self, x: Tensor) -> Tensor:
        return functional.silu(x)


def initial_weights() -> dict[str, Tensor]:
    weights = {}
    for name, shape in shapes().items():
        if "norm" in name:
            value = torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
        elif name.endswith("bias") or name.startswith("output"):
            value = torch.zeros(shape)
        else:
            inner = int(np.prod(shape[1:]))
            value = torch.randn(shape) * (1.0 if name == "label.weight" else inner**-0.5)
        weights[name] = value.requires_grad_()
    return weights


def waves(times: Tensor) -> Tensor:
    angles = times[:, None] * (torch.pi * 2.0 ** torch.arange(-1, FREQUENCIES - 1))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def train(steps: int, seed: int) -> dict[str, Tensor]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pictures = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    classes = torch.tensor(digits.target)
    torch.manual_seed(seed)
    weights = initial_weights()
    print(f"{sum(w.numel() for w in weights.values())} parameters, {len(pictures)} pictures", flush=True)
    optimizer = torch.optim.AdamW(weights.values(), LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.05
    )
    mean = {name: weight.detach().clone() for name, weight in weights.items()}
    started, losses = time.monotonic(), []
    for step in range(steps):
        chosen = torch.randint(0, len(pictures), (BATCH,))
        target, labels = pictures[chosen], classes[chosen]
        labels = torch.where(torch.rand(BATCH) < UNCONDITIONAL, NO_CLASS, labels)
        noise, times = torch.randn(BATCH, 1, SIZE, SIZE), torch.rand(BATCH)
        at = times[:, None, None, None]
        latents = (1 - at) * noise + at * target
        predicted, _ = velocity(Native(), weights, latents, waves(times), labels)
        loss = functional.mse_loss(predicted, target - noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        with torch.no_grad():
            for name, weight in weights.items():
                mean[name].lerp_(weight, 1 - DECAY)
        if step % 500 == 499:
            print(
                f"step {step + 1}: loss {np.mean(losses[-500:]):.4f}, {time.monotonic() - started:.0f} s",
                flush=True,
            )
    return mean


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    weights = train(arguments.steps, arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    halves = {name: weight.to(torch.float16).contiguous() for name, weight in sorted(weights.items())}
    save_file(halves, arguments.out / "model.safetensors")


if __name__ == "__main__":
    main()
