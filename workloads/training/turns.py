"""A run that several peers share, as parts of a whole; see `workloads.training.rounds`."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from protocols.blobs import Blob
from workloads.errors import InputRefused
from workloads.split import Order, Part, Split
from workloads.training.input import (
    CHUNK_UNITS,
    WORDS_PER_PARAMETER,
    Rounds,
    TrainingInput,
    Turn,
    decode_input,
    encode_input,
    losses,
    momentum_blob,
    start_blob,
    state_blob,
)

__all__ = ["TURNS", "losses_of_turns"]


def losses_of_turns(job: TrainingInput, units: Sequence[int]) -> list[list[float]]:
    """The loss before each step of each peer.

    Args:
        job: the whole.
        units: all of its output.
    """
    rounds, turn_units = _rounds(job), job.segments * CHUNK_UNITS
    found: list[list[float]] = [[] for _ in range(rounds.peers)]
    for item in range(rounds.turns - 1):
        found[item % rounds.peers] += losses(job, units[item * turn_units : (item + 1) * turn_units])
    return found


def _rounds(job: TrainingInput) -> Rounds:
    if job.rounds is None:
        raise InputRefused("a run by one peer isn't split: each step needs the one before")
    return job.rounds


def _read(whole: bytes) -> tuple[TrainingInput, Rounds]:
    job = decode_input(whole, is_whole=True)
    return job, _rounds(job)


def _items(whole: bytes) -> int:
    return _read(whole)[1].turns


def _place(rounds: Rounds, item: int) -> tuple[int, int]:
    """Round and peer."""
    if not 0 <= item < rounds.turns:
        raise InputRefused(f"turn {item} must be below {rounds.turns}")
    return divmod(item, rounds.peers)


def _needs(whole: bytes, item: int) -> tuple[int, ...]:
    """All turns of the last round."""
    _, rounds = _read(whole)
    number, _ = _place(rounds, item)
    return tuple(range((number - 1) * rounds.peers, number * rounds.peers)) if number else ()


def _part(whole: bytes, item: int, needed: Sequence[Sequence[int]]) -> Part:
    job, rounds = _read(whole)
    number, peer = _place(rounds, item)
    if number == 0:
        return _part_of(job, Turn(0, peer))
    if len(needed) != rounds.peers:
        raise InputRefused(f"{len(needed)} turns of round {number - 1} must be {rounds.peers}")
    last = [replace(job, turn=Turn(number - 1, other)) for other in range(rounds.peers)]
    pairs = list(zip(last, needed, strict=True))
    starts = {(start_blob(turn, units), momentum_blob(turn, units)) for turn, units in pairs}
    if len(starts) != 1:
        raise InputRefused(f"turns of round {number - 1} started from {len(starts)} states, must be one")
    ((before, momentum),) = starts
    ends = tuple(state_blob(units, job.segments - 1) for _, units in pairs)
    is_step = rounds.nesterov is not None
    return _part_of(job, Turn(number, peer, ends, before if is_step else None, momentum if is_step else None))


def _outline(whole: bytes, first: int, count: int) -> Part:
    """A turn before it is known what it starts from."""
    job, rounds = _read(whole)
    if count != 1:
        raise InputRefused(f"{count} turns must be 1: each is a part")
    number, peer = _place(rounds, first)
    state = Blob(bytes(32), 4 * WORDS_PER_PARAMETER * job.parameters)
    return _part_of(
        job,
        Turn(
            number,
            peer,
            (state,) * (rounds.peers if number else 0),
            state if rounds.nesterov is not None and number > 0 else None,
            Blob(bytes(32), 4 * job.parameters) if rounds.nesterov is not None and number > 1 else None,
        ),
    )


def _part_of(job: TrainingInput, turn: Turn) -> Part:
    part = replace(job, turn=turn)
    return Part(encode_input(part), 0, part.units_total)


def _label(whole: bytes, item: int) -> str:
    _, rounds = _read(whole)
    number, peer = _place(rounds, item)
    return f"round {number}, peer {peer}" if number < rounds.rounds else "the states of all made one"


TURNS = Split("turn", _items, _outline, Order(_needs, _part, _label))
