"""``lm.generate`` behind the interface of all workloads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from workloads.lm.generate import LmExecutor
from workloads.lm.input import decode_input
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
    ) -> None:
        self.executor = LmExecutor(model_dir, profile, variant, expected_digest=expected_digest)
        self.model = self.executor.model
        self.profile = profile

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
