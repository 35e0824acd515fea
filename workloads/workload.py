"""The one interface behind which every kind of work is run and checked.

Four things have to be said of a kind of work before strangers can check it:

- its *chunks*: `Kind.chunk_units` output units make one, and each is committed to by itself;
- the *inputs of a chunk*: the job's input, and of the output only units before the chunk's end. So a chunk
  can be checked as soon as it is there, and a job can go on after any verified chunk;
- the *digest of a chunk*, `Workload.generate` reports it: over its units, and over inner values that the
  units don't give away. A verifier is handed the units, so a digest of them alone could be had without work;
- the *cheap check*, `Workload.recompute`: the digest that a chunk should have, derived for less than it
  costs to produce the output, or `protocols.units.FALSE_UNITS` where the claimed units are wrong.

Output units are 32-bit words: token ids, or pixels, latents and matrix entries packed. A `Kind` is what a
node knows without torch; a `Workload` is the thing itself, opened in a worker process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from protocols.blobs import Blob
from protocols.digest import tagged
from protocols.messages import Tolerance
from workloads.blobs import Blobs
from workloads.errors import InputRefused
from workloads.lm.tolerance import load_tolerance
from workloads.split import Part, Split

__all__ = [
    "ALL_PROFILES",
    "EXACT_PROFILES",
    "Artifact",
    "Kind",
    "Model",
    "Outcome",
    "Workload",
    "chunk_range",
    "names_none",
    "weightless_model",
]

EXACT_PROFILES = ("exact14", "exact21")
ALL_PROFILES = (*EXACT_PROFILES, "homogeneous", "native")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a generation ended.

    Args:
        units_total: output units, the prefix included.
        reason: ``length``, ``stop`` or ``cancelled``.
    """

    units_total: int
    reason: str


class Workload(Protocol):
    """A kind of work with its model, in one numerics profile."""

    model: bytes
    """What the model's files hash to."""
    profile: str

    def generate(
        self,
        input: bytes,
        prefix: Sequence[int],
        on_units: Callable[[int, list[int]], None],
        on_chunk: Callable[[int, bytes], None],
        should_stop: Callable[[], bool],
    ) -> Outcome:
        """Do the job, chunk by chunk.

        Args:
            input: the job's input, in the workload's own encoding.
            prefix: output units that exist already, whole chunks of them; the output goes on after them as
                if it had never stopped.
            on_units: called with the position of the first new unit and the new units.
            on_chunk: called with a chunk's number and digest once its last unit is out.
            should_stop: asked often; a run that is told to stop ends as ``cancelled``.

        Raises:
            InputRefused: the input or the prefix breaks a rule.
            NumericsRefused: the computation left the range of exact arithmetic.
        """

    def recompute(self, input: bytes, units: Sequence[int], chunks: Iterable[int]) -> dict[int, bytes]:
        """Digests that some chunks of a claimed output should have: the cheap check.

        Args:
            input: the job's input.
            units: the claimed output, at least as far as the last chunk wanted.
            chunks: their numbers.

        Returns:
            Each chunk's number and digest, taking the units before it as they are claimed;
            `protocols.units.FALSE_UNITS` where the chunk's own units aren't the ones that follow.

        Raises:
            InputRefused: the input breaks a rule, or a chunk doesn't exist.
            NumericsRefused: the computation left the range of exact arithmetic.
        """


@dataclass(frozen=True, slots=True)
class Model:
    """What a kind of work runs.

    Args:
        name: by which job files call it.
        path: its directory; the current one for a workload without weights.
        digest: by which the protocol calls it.
        context_units_max: input and output units of one job together.
    """

    name: str
    path: Path
    digest: bytes
    context_units_max: int


@dataclass(frozen=True, slots=True)
class Artifact:
    """A finished job's output as a file.

    Args:
        media_type: such as ``image/png``.
        content: of the file.
        description: what it is, in a few words.
    """

    media_type: str
    content: bytes
    description: str


def names_none(*_: object) -> tuple[Blob, ...]:
    """No blobs: of a kind whose inputs and outputs are all there is."""
    return ()


def _says_nothing(input: bytes, units: Sequence[int]) -> str:
    return ""


def _reads_none(directory: Path) -> Model | None:
    return None


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of work, as a node knows it without torch.

    Args:
        name: of the workload, as jobs carry it.
        unit: what one output unit is called.
        chunk_units: output units of a whole chunk.
        segment_chunks: chunks of one signed commitment.
        segments: the same where it depends on the input; None where it doesn't.
        profiles: numerics profiles it can be run in.
        variants: ways to cheat that its hostile form knows (`tests` and demonstrations only).
        models: the models that ship with the package.
        probe: a small job's input, by which a machine is measured and checked against itself.
        open: loads a model: directory, profile, variant or None, the digest it must have or None, and where
            blobs are read and written.
        present: a finished job's file, from input and units; None where the output is text for a tokenizer.
        input_blobs: the blobs that an input names; whoever executes or checks the job needs them all.
        output_blobs: the blobs that output units name, given the input; the client wants them all.
        chunk_blobs: blobs of earlier output that the check of a chunk starts from: input, units and chunk.
        native_blobs: blobs of a chunk's own output, whose values a check in the native profile compares.
        read_model: the model that a directory holds, called as the directory is, or None if it is another
            kind's; raises `ModelRefused` if it is this kind's and broken.
        tolerance: how far native findings of the model in a directory may be apart; all 0 if nobody knows.
        leaves_blobs: whether the units that come of an input name blobs at all; None if `output_blobs` finds
            some in every output.
        split: how a job falls into parts; None if it doesn't.
        remark: what output so far is worth saying of, as it comes, from input and units; empty for nothing.
        plan: the job that a job file's fields ask for, as plain data. For plug-ins (`workloads.plugins`):
            fields of the built-in kinds are read by the node. Raises `InputRefused`.
    """

    name: str
    unit: str
    chunk_units: int
    segment_chunks: int
    profiles: tuple[str, ...]
    variants: tuple[str, ...]
    models: Callable[[], tuple[Model, ...]]
    probe: Callable[[], bytes]
    open: Callable[[Path, str, str | None, bytes | None, Blobs], Workload]
    present: Callable[[bytes, Sequence[int]], Artifact] | None = None
    input_blobs: Callable[[bytes], tuple[Blob, ...]] = names_none
    output_blobs: Callable[[bytes, Sequence[int]], tuple[Blob, ...]] = names_none
    chunk_blobs: Callable[[bytes, Sequence[int], int], tuple[Blob, ...]] = names_none
    native_blobs: Callable[[bytes, Sequence[int], int], tuple[Blob, ...]] = names_none
    read_model: Callable[[Path], Model | None] = _reads_none
    tolerance: Callable[[Path], Tolerance] = load_tolerance
    leaves_blobs: Callable[[bytes], bool] | None = None
    split: Split | None = None
    segments: Callable[[bytes], int] | None = None
    remark: Callable[[bytes, Sequence[int]], str] = _says_nothing
    plan: Callable[[Mapping[str, Any]], Part] | None = None


def chunk_range(chunk: int, units: int, chunk_units: int) -> range:
    """Positions in the output that a chunk of an output of ``units`` units covers.

    Raises:
        InputRefused: there is no such chunk.
    """
    first = chunk * chunk_units
    if not 0 <= first < units:
        raise InputRefused(f"chunk {chunk} does not exist in an output of {units} units")
    return range(first, min(first + chunk_units, units))


def weightless_model(workload: str, version: int) -> bytes:
    """The digest that names a workload without weights, where others have their model's."""
    return tagged("p2p-node/weightless/1", workload.encode(), version.to_bytes(8, "little"))
