"""``lm.generate`` behind the interface of all workloads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from workloads.blobs import NO_BLOBS, Blobs
from workloads.llama.config import load_config
from workloads.lm.hostile import QUANTIZED_WEIGHTS, cheaper_model
from workloads.lm.input import decode_input
from workloads.lm.manifest import SMALL_FILES, WEIGHTS_FILE, load_manifest
from workloads.lm.native import open_executor
from workloads.program.context import write_context
from workloads.program.lm import ChunkJob, build_program
from workloads.program.program import Program
from workloads.workload import Outcome

__all__ = ["LmWorkload"]


class LmWorkload:
    """`LmExecutor` for inputs as jobs carry them; its arguments are the executor's."""

    def __init__(
        self,
        model_dir: Path,
        profile: str,
        variant: str | None = None,
        *,
        expected_digest: bytes | None = None,
        blobs: Blobs = NO_BLOBS,
    ) -> None:
        self.executor = open_executor(
            model_dir, profile, variant, expected_digest=expected_digest, blobs=blobs
        )
        self.model = self.executor.model
        self.profile = profile
        self._variant = variant
        self._model_dir = model_dir

    def generate(
        self,
        input: bytes,
        prefix: Sequence[int],
        on_units: Callable[[int, list[int]], None],
        on_chunk: Callable[[int, bytes], None],
        should_stop: Callable[[], bool],
    ) -> Outcome:
        """See `workloads.workload.Workload`."""
        return self.executor.generate(decode_input(input), prefix, on_units, on_chunk, should_stop)

    def recompute(self, input: bytes, units: Sequence[int], chunks: Iterable[int]) -> dict[int, bytes]:
        """One prefill over prompt and claimed output, and every token drawn anew from its seed."""
        return self.executor.recompute(decode_input(input), units, chunks)

    def chunk_program(self, input: bytes, units: Sequence[int], chunk: int) -> tuple[Program, list[Tensor]]:
        """See `workloads.program.disputes.Disputable`."""
        job, manifest = decode_input(input), load_manifest(self._model_dir)
        given = ChunkJob(job, units, chunk, self.executor.pieces_for(job))
        program = build_program(
            load_config(self._model_dir),
            {parameter.name: parameter.dtype for parameter in manifest.parameters},
            model=self.model,
            profile=self.profile,
            given=given,
        )
        tensors = load_file(self._model_dir / WEIGHTS_FILE)
        if self._variant == QUANTIZED_WEIGHTS:
            # A cheat that stands by what it stated: its trace shows the weights that it ran.
            tensors = cheaper_model(load_config(self._model_dir), tensors, QUANTIZED_WEIGHTS)[1]
        values = tensors | given.values()
        return program, [values[item.name] for item in program.inputs]

    def context(self, input: bytes) -> bytes:
        """See `workloads.program.disputes.Disputable`."""
        # Only stop texts need the tokenizer, which isn't small.
        names = SMALL_FILES if decode_input(input).stop else SMALL_FILES[:1]
        return write_context(load_manifest(self._model_dir), *(self._model_dir / name for name in names))
