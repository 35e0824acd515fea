"""What a node offers of one kind of work: an ability for each price, from its numerics profiles.

The exact profiles run anywhere. The homogeneous one is offered where this machine's class is known, the
native one where the model has been calibrated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from p2p_node.admission import worker_memory_bytes
from p2p_node.config import NodeConfig
from protocols.bidding import Ability
from protocols.messages import EQUAL_BITS, Offering
from verification.findings import EXACT_PROFILES, HOMOGENEOUS, NATIVE
from workloads.workload import Kind, Model

__all__ = ["PROFILE_PERCENT", "abilities_of"]

PROFILE_PERCENT = {"exact14": 100, "exact21": 200, "homogeneous": 90, "native": 80}
"""Asks by profile, in percent: more digits cost more time, and what is harder to check is worth less."""

_RATE_PERCENT = {"exact21": 50}
"""Rates are measured in the first exact profile; the others are taken to be as fast unless named here."""


def abilities_of(
    kind: Kind,
    model: Model,
    *,
    profiles: Sequence[str],
    rate_milli: int,
    config: NodeConfig,
    measured: dict[str, Any],
) -> list[Ability]:
    """One ability for each profile that this machine can run a model in.

    Args:
        kind: of work.
        model: of this kind.
        profiles: of the kind's, those in which this machine may be judged.
        rate_milli: output units in 1,000 seconds, measured in the first of them.
        config: the operator's prices.
        measured: what `workloads.measure` found.
    """
    numeric_class = str(measured.get("numeric_class", ""))
    tolerance = kind.tolerance(model.path) if NATIVE in kind.profiles else EQUAL_BITS
    can_run = {HOMOGENEOUS: bool(numeric_class), NATIVE: tolerance != EQUAL_BITS}
    percent = PROFILE_PERCENT | dict(config.profile_percent)
    return [
        Ability(
            Offering(
                kind.name,
                model.digest,
                (profile,),
                config.price_micros * percent[profile] // 100,
                rate_milli * _RATE_PERCENT.get(profile, 100) // 100,
                True,
                numeric_class if profile == HOMOGENEOUS else "",
            ),
            "cpu",
            model.context_units_max,
            worker_memory_bytes(measured["memory_bytes"]),
            kind.chunk_units,
            tolerance if profile == NATIVE else EQUAL_BITS,
        )
        for profile in profiles
        if profile in EXACT_PROFILES or can_run.get(profile, False)
    ]
