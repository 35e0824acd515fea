"""How likely a cheater is to escape, and how much checking a wanted probability costs.

For whoever chooses a policy, before the terms are signed. Floats are fine here: what goes into a
contract is the integers that come out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Sampling", "choose_sampling", "escape_probability"]


@dataclass(frozen=True)
class Sampling:
    """A choice of checking: verifiers expected, in thousandths, and the chunks each recomputes."""

    expected_milli: int
    samples: int
    escape_probability: float


def escape_probability(
    *,
    expected_verifiers: float,
    samples_per_verifier: int,
    forged_share: float,
    colluding_share: float = 0.0,
    lazy_share: float = 0.0,
) -> float:
    """The chance that nobody catches an executor that forged part of its chunks.

    It holds while nobody's chance of being drawn is cut off at 1, that is, while
    expected_verifiers is at most total weight / largest weight. It is an upper bound where a
    commitment has few chunks, because verifiers draw without replacement.

    Args:
        expected_verifiers: k, verifiers expected from the whole electorate, above 0.
        samples_per_verifier: s, chunks that each recomputes, at least 1.
        forged_share: f, share of chunks that are forged, in (0, 1].
        colluding_share: c, share of weight that keeps silent for the cheater, in [0, 1].
        lazy_share: r, share of the others that does not answer, in [0, 1].

    Returns:
        ``exp(-k (1-c) (1-r) (1-(1-f)**s))``, in (0, 1].

    Raises:
        ValueError: an argument lies outside its interval.

    Source: the number of honest, diligent verifiers is close to Poisson with mean k(1-c)(1-r);
        each misses all forged chunks with chance (1-f)**s.
    """
    if not (math.isfinite(expected_verifiers) and expected_verifiers > 0):
        raise ValueError(f"expected_verifiers must be finite and > 0, got {expected_verifiers}")
    if samples_per_verifier < 1:
        raise ValueError(f"samples_per_verifier must be >= 1, got {samples_per_verifier}")
    _check_forged(forged_share)
    catching = _catching_share(samples_per_verifier, forged_share)
    return math.exp(-expected_verifiers * _honest_share(colluding_share, lazy_share) * catching)


def choose_sampling(
    *,
    escape_target: float,
    forged_share: float,
    chunks: int,
    expected_verifiers_max: float,
    colluding_share: float = 0.0,
    lazy_share: float = 0.0,
    verifier_overhead_chunks: float = 1.0,
) -> Sampling:
    """The cheapest checking that lets a cheater escape at most this often.

    Cost is ``k * (verifier_overhead_chunks + s)`` in chunk recomputations. With the overhead at 0
    one chunk each from many verifiers always wins, since no chunk is worth a second look by the
    same peer.

    Args:
        escape_target: accepted chance of escape, in (0, 1).
        forged_share: share of chunks forged that must be caught, in (0, 1].
        chunks: how many a commitment covers, at least 1; a verifier that recomputes all of them
            misses nothing.
        expected_verifiers_max: most verifiers to expect; total weight / largest weight or less.
        colluding_share: share of weight that keeps silent for the cheater, in [0, 1).
        lazy_share: share of the others that does not answer, in [0, 1).
        verifier_overhead_chunks: what one verifier costs beside its chunks, in chunks, >= 0.

    Returns:
        The choice; of equally cheap ones the one with fewer samples.

    Raises:
        ValueError: an argument lies outside its interval, or even all chunks recomputed by
            expected_verifiers_max leave a higher chance than the target.
    """
    if not 0 < escape_target < 1:
        raise ValueError(f"escape_target must be in (0, 1), got {escape_target}")
    if chunks < 1:
        raise ValueError(f"chunks must be >= 1, got {chunks}")
    if not (math.isfinite(expected_verifiers_max) and expected_verifiers_max > 0):
        raise ValueError(f"expected_verifiers_max must be finite and > 0, got {expected_verifiers_max}")
    if not (math.isfinite(verifier_overhead_chunks) and verifier_overhead_chunks >= 0):
        raise ValueError(f"verifier_overhead_chunks must be finite and >= 0, got {verifier_overhead_chunks}")
    _check_forged(forged_share)
    honest = _honest_share(colluding_share, lazy_share)
    best: tuple[float, Sampling] | None = None
    for samples in range(1, chunks + 1):
        catching = 1.0 if samples == chunks else _catching_share(samples, forged_share)
        if honest * catching == 0:
            continue
        # Rounded up to whole thousandths, which is how terms state it.
        expected_milli = math.ceil(1_000 * -math.log(escape_target) / (honest * catching))
        if expected_milli > 1_000 * expected_verifiers_max:
            continue
        cost = expected_milli * (verifier_overhead_chunks + samples)
        if best is None or cost < best[0]:
            escape = math.exp(-expected_milli / 1_000 * honest * catching)
            best = (cost, Sampling(expected_milli, samples, escape))
    if best is None:
        reachable = math.exp(-expected_verifiers_max * honest)
        raise ValueError(
            f"escape_target={escape_target} is out of reach: {expected_verifiers_max} expected verifiers "
            f"that recompute all {chunks} chunks leave {reachable:.3g}"
        )
    return best[1]


def _honest_share(colluding_share: float, lazy_share: float) -> float:
    for name, share in (("colluding_share", colluding_share), ("lazy_share", lazy_share)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {share}")
    return (1 - colluding_share) * (1 - lazy_share)


def _check_forged(forged_share: float) -> None:
    if not 0 < forged_share <= 1:
        raise ValueError(f"forged_share must be in (0, 1], got {forged_share}")


def _catching_share(samples: int, forged_share: float) -> float:
    """The chance 1-(1-f)**s that one verifier's samples hit a forged chunk."""
    if forged_share == 1:
        return 1.0
    # expm1 and log1p keep precision when only a sliver is forged.
    return -math.expm1(samples * math.log1p(-forged_share))
