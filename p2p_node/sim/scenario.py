"""Ready-made worlds and jobs, shared by the simulator, the trio runtime's tests and benchmarks."""

from __future__ import annotations

from p2p_node.core.node import Capability
from p2p_node.core.request import JobRequest
from protocols.bidding import Ability
from protocols.digest import tagged
from protocols.messages import Offering

__all__ = ["MODEL", "job_request", "sim_capability"]

MODEL = tagged("p2p-node/sim-model/1")


def sim_capability(
    *, price_micros: int = 100, rate_milli: int = 200_000, slots: int = 2, serves: bool = True
) -> Capability:
    """A peer that runs and verifies the simulated workload, or only publishes jobs."""
    offering = Offering("sim.hash", MODEL, ("exact14",), price_micros, rate_milli, True)
    ability = Ability(offering, "cpu", 4_096, 1 << 30)
    return Capability(abilities=(ability,) if serves else (), slots_total=slots)


def job_request(number: int, *, units: int = 64, mode: str = "auction", verifiers: int = 2) -> JobRequest:
    """The simulated workload's job number ``number``."""
    return JobRequest(
        name=f"job-{number}",
        workload="sim.hash",
        model=MODEL,
        profile="exact14",
        input=f"input {number}".encode(),
        input_units=8,
        units_max=units,
        mode=mode,
        window_ms=1_000,
        expected_verifiers_milli=verifiers * 1_000,
        draw_window_ms=800,
        answer_ms=8_000,
        stall_ms=10_000,
        queue_ms=60_000,
        execution_ms=60_000,
        total_ms=240_000,
    )
