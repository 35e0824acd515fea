"""A run by several peers at once: rounds in which each goes its own way from one state; without torch.

A *turn* is what one peer does in one round: some segments over data in an order of its own. All turns of a
round start from the same state, which each derives for itself from the states that the last round's turns
ended in: no peer is trusted to do it for the others, and whoever checks a turn checks its start. After the
last round comes one turn more, which does only that: its state is the run's.
"""

from __future__ import annotations

from protocols.blobs import Blob
from protocols.codec import Wire
from protocols.limits import PARTS_MAX
from workloads.errors import InputRefused
from workloads.training.shapes import within

__all__ = ["Nesterov", "Rounds", "Turn"]

_PEERS_MAX = 32
_MICRO = 1_000_000


class Nesterov(Wire, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The step from the last round's start to the next one's (DiLoCo; Douillard et al., 2023).

    The way from the last start to the average of what became of it counts as a gradient, against which a step
    with Nesterov's momentum is taken.

    Args:
        rate_micro: its learning rate, in millionths.
        momentum_micro: how much of its momentum is kept.
    """

    rate_micro: int
    momentum_micro: int

    def check(self) -> None:
        """Hold every field against its rule.

        Raises:
            InputRefused: the first that breaks it.
        """
        within("rate_micro", self.rate_micro, 0, 2 * _MICRO)
        within("momentum_micro", self.momentum_micro, 0, _MICRO - 1)


class Rounds(Wire, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How a run is shared.

    Args:
        peers: turns of each round.
        rounds: before the end.
        nesterov: the step between rounds, or None to go on from the average.
    """

    peers: int
    rounds: int
    nesterov: Nesterov | None = None

    @property
    def turns(self) -> int:
        """Of all rounds, with the one that ends the run."""
        return self.peers * self.rounds + 1

    def check(self) -> None:
        """Hold every field against its rule.

        Raises:
            InputRefused: the first that breaks it.
        """
        within("peers", self.peers, 1, _PEERS_MAX)
        within("rounds", self.rounds, 1, PARTS_MAX)
        if self.turns > PARTS_MAX:
            raise InputRefused(
                f"peers x rounds = {self.peers * self.rounds} must be at most {PARTS_MAX - 1}, "
                "since each turn is a part"
            )
        if self.nesterov is not None:
            self.nesterov.check()


class Turn(Wire, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One turn, and the states that its start follows from.

    Args:
        round: from 0; the number of rounds for the turn that ends the run.
        peer: from 0; it decides the order of the data.
        ends: what the turns of the last round ended in, by peer; none in the first round.
        before: the state that the last round started from, where the step needs it.
        momentum: of the last step, where there was one.
    """

    round: int
    peer: int
    ends: tuple[Blob, ...] = ()
    before: Blob | None = None
    momentum: Blob | None = None

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """All that it names."""
        return tuple(blob for blob in (*self.ends, self.before, self.momentum) if blob is not None)

    def check(self, rounds: Rounds) -> None:
        """Hold every field against its rule.

        Raises:
            InputRefused: the first that breaks it.
        """
        within("round", self.round, 0, rounds.rounds)
        within("peer", self.peer, 0, 0 if self.round == rounds.rounds else rounds.peers - 1)
        wanted = (
            ("ends", len(self.ends), rounds.peers if self.round else 0),
            ("before", self.before is not None, rounds.nesterov is not None and self.round > 0),
            ("momentum", self.momentum is not None, rounds.nesterov is not None and self.round > 1),
        )
        for name, found, needed in wanted:
            if found != needed:
                raise InputRefused(f"{name} of round {self.round} must be given {int(needed)} times")
