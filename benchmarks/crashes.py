"""A crash after every single write: what the promises of a job are worth, for each role, at every moment.

A small world runs one job. One peer dies at its k-th write: before the write reached the store, after it but
before anything was said, or with half of it said. Later it starts again with what its store has. In the end
every account must be square, whoever died and whenever.

python -m benchmarks.crashes [--quick] [--seed S]
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.table import print_table
from p2p_node.core.node import Act
from p2p_node.core.request import FINAL_STATES, JobState
from p2p_node.sim.scenario import job_request, sim_capability
from p2p_node.sim.world import NETWORK, Peer, World
from protocols.digest import DIGEST_BYTES
from protocols.effects import Persist
from protocols.envelope import open_envelope
from protocols.messages import ReceiptBody, Voucher
from verification.receipt import check_receipt

__all__ = ["MOMENTS", "ROLES", "Case", "Crash", "main", "play", "writes_of"]

MOMENTS = ("before", "after", "half")
"""Of a write: nothing is kept; all is kept and nothing said; all is kept and half of it said."""

ROLES = ("requester", "executor", "verifier")
PEERS = 5
UNITS = 96
WARM_UP_MS = 2_500
END_MS = 420_000
BACK_MS = (2_000, 30_000)
"""When the peer is back: before its link counts as lost, and long after."""


@dataclass(frozen=True, slots=True)
class Case:
    """One crash: whose, at which write, where in it, and how long it was away."""

    role: str
    write: int
    moment: str
    back_ms: int


@dataclass(slots=True)
class Crash:
    """What came of a case: the job's final state, and every promise that didn't hold."""

    case: Case | None
    state: str
    broken: list[str]
    writes: int
    """Of the watched peer, from the job's submission to the end."""


class _Mortal(World):
    """A world of which one peer dies at a chosen write."""

    victim: int = -1
    die_at: int = 0
    moment: str = ""
    back_ms: int = 0
    writes: int = 0
    is_counting: bool = False

    def _perform(self, peer: Peer, acts: list[Act]) -> None:
        is_write = (
            self.is_counting and peer.index == self.victim and any(isinstance(act, Persist) for act in acts)
        )
        self.writes += is_write
        if not is_write or self.writes != self.die_at:
            super()._perform(peer, acts)
            return
        kept = [act for act in acts if isinstance(act, Persist)]
        said = [act for act in acts if not isinstance(act, Persist)]
        if self.moment != "before":
            super()._perform(peer, kept + (said[: len(said) // 2] if self.moment == "half" else []))
        self.crash(peer)
        self.at(self.back_ms, partial(self.start, peer))


def play(case: Case | None, *, seed: int = 1, watch: str = "requester") -> Crash:
    """Run one world to its end.

    Args:
        case: the crash; None for none.
        seed: everything follows from it.
        watch: whose writes are counted where there is no crash.
    """
    # The cheapest executes, and everybody else may verify.
    capabilities = [sim_capability(price_micros=50 + index, serves=index != 0) for index in range(PEERS)]
    world = _Mortal(seed=seed, capabilities=capabilities, neighbours=PEERS - 1)
    role = case.role if case else watch
    world.victim = ROLES.index(role)
    if case is not None:
        world.die_at, world.moment, world.back_ms = case.write, case.moment, case.back_ms
    jobs: list[bytes] = []

    def submit() -> None:
        world.is_counting = True
        request = replace(
            # Everybody is drawn, each segment has one chunk.
            job_request(1, units=UNITS, mode="posted", verifiers=8),
            segment_chunks=1,
            total_ms=120_000,
        )
        jobs.append(world.submit(world.peers[0], request))

    world.at(WARM_UP_MS, submit)
    world.run(until_ms=END_MS)
    state, broken = _examine(world, jobs[0], is_requester=bool(case) and role == "requester")
    return Crash(case, state, broken, world.writes)


def _examine(world: World, job_id: bytes, *, is_requester: bool) -> tuple[str, list[str]]:
    """The job's state by its receipt, and each broken promise in words."""
    requester = world.peers[0]
    broken: list[str] = []
    raw = requester.store.get(("receipts", job_id))
    promised = _vouchers(requester, payee=None)
    job = requester.core.jobs.get(job_id)
    if job is not None and job.state not in FINAL_STATES:
        broken.append(f"the job is still {job.state.value}")
    if raw is None:
        state = "interrupted before a contract"
        if not is_requester:
            broken.append("there is no receipt")
        if promised:
            broken.append("vouchers were signed, and there is no receipt")
    else:
        report = check_receipt(raw, network=NETWORK, crypto=requester.core.crypto)
        state = report.state
        earned = {peer: micros for peer, micros in report.earnings.items() if micros}
        owed: Counter[bytes] = Counter()
        for voucher in promised.values():
            owed[voucher.payee] += voucher.settled_micros
        if earned != {peer: micros for peer, micros in owed.items() if micros}:
            broken.append("the receipt doesn't say what was paid")
        if not is_requester and state != JobState.VERIFIED.value:
            broken.append(f"the job ended {state}")
        body = open_envelope(raw, network=NETWORK, crypto=requester.core.crypto, expect=ReceiptBody).body
        paid = max((v.settled_micros for v in promised.values() if v.settled_micros >= 50), default=0)
        if paid and not body.units:
            broken.append("what was paid for isn't there")
    broken += _examine_accounts(world, promised)
    return state, broken


def _examine_accounts(world: World, promised: dict[bytes, Voucher]) -> Iterator[str]:
    received = {key: v for peer in world.peers for key, v in _vouchers(peer, payee=peer.core.key).items()}
    for key, voucher in promised.items():
        if key not in received:
            yield "a voucher never reached its payee"
        elif received[key] != voucher:
            yield "the payee has an older voucher than was signed"
    if received.keys() - promised.keys():
        yield "a payee has a voucher that its payer forgot"
    for peer in world.peers:
        for table in ("outbox", "contracts", "drafts"):
            if any(name == table for name, _ in peer.store):
                yield f"{table} of peer {peer.index} isn't empty in the end"
        if peer.penalties:
            yield f"peer {peer.index} found fault: {peer.penalties[0][2]}"
        if any(standing.convicted for standing in peer.core.standings.peers.values()):
            yield f"peer {peer.index} convicted somebody"


def _vouchers(peer: Peer, *, payee: bytes | None) -> dict[bytes, Voucher]:
    """Vouchers in a store, by award and payee: those to ``payee``, or those that the peer signed itself."""
    found: dict[bytes, Voucher] = {}
    for (table_, key), raw in peer.store.items():
        if table_ != "vouchers" or (payee is not None and key[DIGEST_BYTES:] != payee):
            continue
        message = open_envelope(raw, network=NETWORK, crypto=peer.core.crypto, expect=Voucher)
        if payee is not None or message.signer == peer.core.key:
            found[key] = message.body
    return found


def writes_of(role: str, *, seed: int = 1) -> int:
    """How often a role writes where nobody dies."""
    return play(None, seed=seed, watch=role).writes


def main(argv: Sequence[str] | None = None) -> int:
    """Every case; the exit status is 1 if a promise didn't hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crashes", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="each seventh write")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args(argv)
    rows: list[list[str]] = []
    failed = False
    for role in ROLES:
        writes = writes_of(role, seed=arguments.seed)
        for moment in MOMENTS:
            for back_ms in BACK_MS:
                states: Counter[str] = Counter()
                broken: Counter[str] = Counter()
                for write in range(1, writes + 1, 7 if arguments.quick else 1):
                    crash = play(Case(role, write, moment, back_ms), seed=arguments.seed)
                    states[crash.state] += 1
                    for promise in crash.broken:
                        broken[promise] += 1
                        print(f"broken: {crash.case}: {promise}", flush=True)
                failed = failed or bool(broken)
                told = ", ".join(f"{count} {state}" for state, count in states.most_common())
                rows.append(
                    [role, moment, f"{back_ms / 1_000:g} s", str(states.total()), told, str(broken.total())]
                )
    head = ["role", "dies", "back after", "crashes", "the job ended", "promises broken"]
    print_table("One crash at each write of one job", head, rows)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
