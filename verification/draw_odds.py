"""The odds of one electorate as it is: finite, weighted, cut off at certainty, without replacement.

`verification.odds` has the formula that fits a large electorate of equal weights. A job's electorate
may be five peers, or have one that outweighs the rest. Here each elector counts with its own chance
of being drawn, and each verifier with the chance that its distinct chunks miss every forged one.
The formula never falls below what is computed here while shares are even and nobody is certain to be
drawn.

A guarantee is given for each segment. A cheater that forges a share of all chunks forges at least
that share of some segment, so what holds for every segment holds for the job.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protocols.limits import VERIFIERS_PER_SEGMENT_MAX, WIDENING_MAX

__all__ = [
    "EXPECTED_VERIFIERS_MAX",
    "Assumptions",
    "DrawOdds",
    "OutOfReach",
    "SamplingChoice",
    "choose_for",
    "forged_chunks",
    "miss_chance",
    "worst_miss",
]

EXPECTED_VERIFIERS_MAX = VERIFIERS_PER_SEGMENT_MAX // 2
"""Of an electorate that is larger than a round has room for: more are drawn by luck, and all must fit."""


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What a client believes of the network, in shares.

    Args:
        forged: of chunks, the least that must not go unnoticed, in (0, 1].
        colluding: of electors, and of weight, that keep silent for the cheater, in [0, 1).
        lazy: of the others that are drawn and don't answer, in [0, 1).

    Raises:
        ValueError: a share lies outside its interval.
    """

    forged: float = 0.1
    colluding: float = 0.2
    lazy: float = 0.0

    def __post_init__(self) -> None:
        """Check the intervals."""
        if not 0 < self.forged <= 1:
            raise ValueError(f"forged share must be in (0, 1], got {self.forged}")
        for name in ("colluding", "lazy"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} share must be in [0, 1), got {getattr(self, name)}")


class OutOfReach(ValueError):
    """No choice meets a target with the electors there are.

    Attributes:
        escape: the least chance of escape that they can give.
        electors: how many there are.
        needed: how many of even weight would do.
    """

    def __init__(self, target: float, *, escape: float, electors: int, needed: int) -> None:
        super().__init__(
            f"escape {target:g} is out of reach: {electors} electors that all recompute everything leave "
            f"{escape:.2g}; it takes {needed}"
        )
        self.escape = escape
        self.electors = electors
        self.needed = needed


@dataclass(frozen=True, slots=True)
class SamplingChoice:
    """How one job is checked, and what that is worth."""

    expected_milli: int
    """Verifiers expected of an even electorate, in thousandths, as terms state it."""
    samples: int
    """Chunks of a segment that each verifier recomputes."""
    escape: float
    """The chance that nobody catches a forged share of a segment."""
    verifiers: float
    """How many of this electorate are drawn on average."""


def forged_chunks(chunks: int, forged_share: float) -> int:
    """How many of ``chunks`` a cheater forges that forges at least a share of them: one or more."""
    # A hair below, so that 0.1 of 10 is 1 whatever the product rounds to.
    return max(1, math.ceil(chunks * forged_share - 1e-9))


def miss_chance(chunks: int, forged: int, samples: int) -> float:
    """The chance that ``samples`` distinct chunks of ``chunks`` hold none of the ``forged`` ones.

    Source: hypergeometric distribution, no success.
    """
    samples = min(samples, chunks)
    return math.comb(chunks - forged, samples) / math.comb(chunks, samples)


class DrawOdds:
    """The chances of one electorate.

    Args:
        weights: of the electors.
        colluding: each elector's chance of working for the cheater; None takes the assumed share for
            each, independently.
        assumptions: see there; ``forged`` isn't used here.

    Raises:
        ValueError: no electors, a weight below 1, or as many chances as there aren't weights.
    """

    def __init__(
        self,
        weights: Sequence[int],
        assumptions: Assumptions,
        *,
        colluding: Sequence[float] | None = None,
    ) -> None:
        if not weights or min(weights) < 1:
            raise ValueError("an electorate needs electors of weight 1 or more")
        chances = [assumptions.colluding] * len(weights) if colluding is None else list(colluding)
        if len(chances) != len(weights):
            raise ValueError(f"{len(chances)} colluding chances for {len(weights)} electors")
        self.count = len(weights)
        self.total_weight = sum(weights)
        self.assumptions = assumptions
        # Electors that are alike count as one, raised to a power.
        self._groups = Counter(zip(weights, chances, strict=True))

    @property
    def expected_milli_max(self) -> int:
        """The most verifiers worth expecting: then everybody is drawn, or as many as a round can hold."""
        if self.count > VERIFIERS_PER_SEGMENT_MAX:
            return 1_000 * EXPECTED_VERIFIERS_MAX
        return min(1_000_000, -(-1_000 * self.total_weight // min(weight for weight, _ in self._groups)))

    def drawn(self, weight: int, expected_milli: int, level: int = 0) -> float:
        """The chance that an elector is drawn by a level of widening."""
        return min(1.0, (expected_milli << level) * weight / (1_000 * self.total_weight))

    def verifiers(self, expected_milli: int) -> float:
        """How many electors are drawn on average; fewer than expected where some are certain."""
        return sum(n * self.drawn(weight, expected_milli) for (weight, _), n in self._groups.items())

    def undetected(self, expected_milli: int, miss: float) -> float:
        """The chance that no honest elector catches a forged segment, without widening.

        The larger of two readings of the colluding share: each elector colludes with that chance, or
        those collude that together hold that share of weight and would catch most.

        Args:
            expected_milli: verifiers expected, in thousandths.
            miss: the chance that one verifier's chunks miss what is forged.
        """
        lazy = self.assumptions.lazy
        scattered = math.prod(
            (1 - (1 - chance) * (1 - lazy) * self.drawn(weight, expected_milli) * (1 - miss)) ** n
            for (weight, chance), n in self._groups.items()
        )
        return max(scattered, self._concentrated(expected_milli, miss))

    def _concentrated(self, expected_milli: int, miss: float) -> float:
        budget = self.assumptions.colluding * self.total_weight
        catching = (1 - self.assumptions.lazy) * (1 - miss)
        escape = 1.0
        # Heavy electors catch more for their weight than several light ones, so they go first.
        for (weight, _), n in sorted(self._groups.items(), reverse=True):
            bought = min(n, math.floor(budget / weight + 1e-9))
            budget -= bought * weight
            escape *= (1 - self.drawn(weight, expected_milli) * catching) ** (n - bought)
        return escape

    def accepted(self, expected_milli: int, miss: float) -> float:
        """The chance that a forged segment ends verified, widening included.

        Smaller than `undetected`: where nobody answers at all the draw widens, and a segment that
        nobody verified isn't accepted. Colluders answer and agree; the lazy never answer.
        """
        lazy = self.assumptions.lazy
        accepted = 0.0
        for level in range(WIDENING_MAX + 1):
            quiet, silent = 1.0, 1.0
            for (weight, chance), n in self._groups.items():
                answering = 1 - (1 - chance) * lazy
                now = self.drawn(weight, expected_milli, level)
                before = self.drawn(weight, expected_milli, level - 1) if level else 0.0
                catching = (now - before) * (1 - chance) * (1 - lazy) * (1 - miss)
                # Nobody had answered one level below, and nobody catches it at this one ...
                quiet *= (1 - before * answering - catching) ** n
                # ... less the case in which still nobody answers.
                silent *= (1 - now * answering) ** n
            accepted += quiet - silent
        return max(0.0, accepted)


def choose_for(
    weights: Sequence[int],
    *,
    escape_target: float,
    assumptions: Assumptions,
    segment_chunks: int,
    verifier_overhead_chunks: float = 1.0,
) -> SamplingChoice:
    """The cheapest checking by these electors that lets a cheater escape at most this often.

    Cost is as in `verification.odds.choose_sampling`: chunks recomputed, and what each verifier costs
    beside them.

    Args:
        weights: of the electors.
        escape_target: accepted chance of escape, in (0, 1).
        assumptions: what the client believes.
        segment_chunks: most chunks of a segment; it holds for shorter ones too.
        verifier_overhead_chunks: see above, >= 0.

    Raises:
        OutOfReach: even all electors, recomputing everything, leave a higher chance.
        ValueError: the target lies outside its interval, or there is no elector.
    """
    if not 0 < escape_target < 1:
        raise ValueError(f"escape_target must be in (0, 1), got {escape_target}")
    odds = DrawOdds(weights, assumptions)
    top = odds.expected_milli_max
    best: tuple[float, SamplingChoice] | None = None
    for samples in range(1, segment_chunks + 1):
        miss = worst_miss(range(1, segment_chunks + 1), assumptions.forged, samples)
        if odds.undetected(top, miss) > escape_target:
            continue
        low, high = 0, top
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if odds.undetected(middle, miss) <= escape_target else (middle, high)
        verifiers = odds.verifiers(high)
        cost = verifiers * (verifier_overhead_chunks + samples)
        if best is None or cost < best[0]:
            best = (cost, SamplingChoice(high, samples, odds.undetected(high, miss), verifiers))
    if best is None:
        raise OutOfReach(
            escape_target,
            escape=odds.undetected(top, 0.0),
            electors=odds.count,
            needed=_needed(escape_target, assumptions),
        )
    return best[1]


def worst_miss(sizes: Iterable[int], forged_share: float, samples: int) -> float:
    """The highest `miss_chance` over segments of these sizes: the last one is short, by luck or choice."""
    return max(miss_chance(size, forged_chunks(size, forged_share), samples) for size in sizes)


def _needed(escape_target: float, assumptions: Assumptions) -> int:
    """Electors of even weight that meet a target when all are drawn and recompute everything."""
    missing = 1 - (1 - assumptions.colluding) * (1 - assumptions.lazy)
    return 1 if missing == 0 else max(1, math.ceil(math.log(escape_target) / math.log(missing)))
