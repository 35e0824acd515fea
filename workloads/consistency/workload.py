"""Running ``diffusion.terrain``: a chunk is one step of one map, and its units are the map after it.

A step puts noise of a given strength on the map before it and has the network take all noise away at once.
The digest covers the network's result in float64, of which the units keep 32 bits. The cheap check does one
step again from the claimed map before it. Source: Song et al., "Consistency models", 2023, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from workloads.chunkwise import Chunk
from workloads.consistency.config import PROGRAM_FILE, SIDE, SMALL_FILES, load_config
from workloads.consistency.input import LATENT_UNITS, TerrainInput, decode_input
from workloads.consistency.kind import STALE_STEPS, TERRAIN
from workloads.errors import InputRefused, ModelRefused
from workloads.fingerprint import float_miss_ppb, unit_row
from workloads.lm.manifest import WEIGHTS_FILE, load_manifest
from workloads.normals import normals
from workloads.profiled import Profiled
from workloads.program import value_digest
from workloads.program.exported import check_template, with_profile
from workloads.program.native import NativeRun, inner_value
from workloads.program.prepared import Prepared
from workloads.program.program import JOB, Program, ValueSpec, decode_program

__all__ = ["TerrainSampler"]

_MAP = ValueSpec("float32", (1, 1, SIDE, SIDE))
_SCALAR = ValueSpec("float32", (1,))
_PORTS = (_MAP, _SCALAR, _SCALAR)
_THOUSAND = 1000.0


class TerrainSampler(Profiled[TerrainInput]):
    """One loaded model in one numerics profile.

    Args:
        model_dir: the model's directory.
        profile: of the kind's.
        variant: how to cheat while generating, or None.
        expected_digest: what the files must hash to, if known.

    Raises:
        InputRefused: the profile or the variant is unknown.
        ModelRefused: the directory is not such a model, or hashes to something else.
        ProgramRefused: its program breaks a rule.
    """

    def __init__(
        self,
        model_dir: Path,
        profile: str,
        variant: str | None = None,
        *,
        expected_digest: bytes | None = None,
    ) -> None:
        model = load_manifest(model_dir, SMALL_FILES).digest
        super().__init__(
            TERRAIN, model, profile, variant, expected_digest=expected_digest, model_dir=model_dir
        )
        self._config = load_config(model_dir)
        program = decode_program((model_dir / PROGRAM_FILE).read_bytes())
        self._parameters = _parameters(program, load_file(model_dir / WEIGHTS_FILE))
        wanted = program.steps[-1].inputs
        if self._numerics.has_inner_states:
            wanted = (*wanted, inner_value(program))
        precision = self._numerics.precision
        self._program = program if precision is None else with_profile(program, precision.name)
        self._prepared = (NativeRun if precision is None else Prepared)(self._program, wanted)

    def decode(self, input: bytes) -> TerrainInput:
        """See `Chunkwise`."""
        job = decode_input(input)
        for index, condition in enumerate(job.conditions):
            if condition > self._config.conditions:
                raise InputRefused(
                    f"conditions[{index}]={condition} must be at most {self._config.conditions}"
                )
        return job

    def units_total(self, job: TerrainInput) -> int:
        """See `Chunkwise`."""
        return job.units_total

    def derive(self, job: TerrainInput, before: Sequence[int], chunk: int) -> Chunk:
        """See `Chunkwise`; of what came before, a step needs the one map that it starts from."""
        place, step = divmod(chunk, len(job.sigmas_milli))
        sigma = torch.tensor(float(job.sigmas_milli[step]), dtype=torch.float64) / _THOUSAND
        noise = normals(job.seed, LATENT_UNITS, (job.first_map + place, step)) * sigma
        if step:
            words = np.array(before[(chunk - 1) * LATENT_UNITS : chunk * LATENT_UNITS], dtype=np.uint32)
            noise += torch.from_numpy(words.view(np.float32)).to(torch.float64)
        span = torch.tensor(float(max(1, self._config.conditions - 1)), dtype=torch.float64)
        condition = torch.tensor([float(job.conditions[place] - 1)], dtype=torch.float64) / span
        given = iter(
            (
                noise.to(torch.float32).view(_MAP.shape),
                sigma.to(torch.float32).view(1),
                condition.to(torch.float32),
            )
        )
        inputs = [
            next(given) if item.source == JOB else self._parameters[item.name]
            for item in self._program.inputs
        ]
        result, *inner = self._prepared.run(inputs)
        units: list[int] = (
            result.to(torch.float32).flatten().view(torch.int32).numpy().view(np.uint32).tolist()
        )
        return Chunk(units, value_digest(result), tuple(map(unit_row, (result, *inner))))

    def miss_ppb(self, job: TerrainInput, claimed: Sequence[int], own: Chunk) -> int:
        """See `Profiled`: the maps are compared."""
        return float_miss_ppb(claimed, np.array(own.units, dtype="<u4").view("<f4"))

    def produce(self, job: TerrainInput, before: Sequence[int], chunk: int) -> Chunk:
        """See `Chunkwise`; the cheater hands every second map on as it was."""
        if self._variant != STALE_STEPS or chunk % len(job.sigmas_milli) % 2 == 0:
            return self.derive(job, before, chunk)
        units = list(before[(chunk - 1) * LATENT_UNITS : chunk * LATENT_UNITS])
        kept = torch.from_numpy(np.array(units, dtype=np.uint32).view(np.float32)).to(torch.float64)
        return Chunk(units, value_digest(kept.view(_MAP.shape)), (kept, kept))


def _parameters(program: Program, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The program's tensors, once its ends are those of a consistency model.

    Raises:
        ModelRefused: they aren't, or a tensor is missing or of another kind.
    """
    specs = check_template(program)
    ports = tuple(item.spec for item in program.inputs if item.source == JOB)
    outputs = tuple(specs[number].shape for number in program.steps[-1].inputs)
    if ports != _PORTS or outputs != (_MAP.shape,):
        raise ModelRefused(
            f"{PROGRAM_FILE} takes {[str(port) for port in ports]} and gives {outputs}, "
            f"must take a map, its noise and a condition, and give a map of {_MAP.shape}"
        )
    for item in program.inputs:
        if item.source == JOB:
            continue
        tensor = tensors.get(item.name)
        if tensor is None or tuple(tensor.shape) != item.spec.shape:
            raise ModelRefused(f"{WEIGHTS_FILE} must hold {item.name!r} of shape {item.spec.shape}")
    return tensors
