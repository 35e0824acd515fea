"""Each attack once, by real processes over real libp2p, and what came of it.

A swarm of honest peers stays; hostile ones join it for one attack and are ended after it. What is
reported is what a user could see: events, receipts, other peers' opinions, and the nodes' logs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from p2p_node.hostile.catalogue import ATTACKS, Attack, Role
from p2p_node.swarm import CHEAT_PRICE_MICROS, Swarm, SwarmPeer

__all__ = ["LiveReport", "attack_live", "reference_text"]

DEAR_MICROS = 400
"""What hostile verifiers ask, so that they are never executors."""

SPREAD_S = 15.0
"""How long a conviction may take to reach everybody and be recomputed by each."""

RIDES_MAX = 8
_JOB = """
apiVersion: p2p/v1
kind: Job
name: attacked
task:
  workload: lm.generate
  model: kjv-2m
  prompt: "And it came to pass"
  max_tokens: {tokens}
  seed: {seed}
placement:
  exclude: [{exclude}]
auction:
  window: 700ms
  rebids: {rebids}
verify:
  profile: exact14
  verifiers: {verifiers}
  chunks: all
  reveal: 6s
timeouts:
  queue: 20s
"""

_RING = {"sybil-swarm": 2, "eclipse": 2}
"""Keys beside the executor's that only verify."""

_OUTCOMES = {
    "equivocation": "output and commitment differ",
    "copied-result": "opening withheld",
    "withheld-opening": "opening withheld",
}


@dataclass(frozen=True, slots=True)
class LiveReport:
    """One attack, mounted by real processes.

    Args:
        kind: of attack.
        happened: what its check did, in a few words.
        is_caught: whether that is what the catalogue promises.
        convicted_by: honest peers that convicted each convicted cheater, at least.
        is_answer_right: whether the honest client's text is the one that an honest swarm gives.
        harmed: honest peers that another honest peer convicted.
        seconds: all of it, starting the hostile processes included.
    """

    kind: str
    happened: str
    is_caught: bool
    convicted_by: int
    is_answer_right: bool
    harmed: int
    seconds: float


def reference_text(swarm: Swarm) -> str:
    """What the job of these attacks gives where nobody cheats."""
    return str(_run(swarm.requester)[1]["text"])


def attack_live(swarm: Swarm, kind: str, reference: str) -> LiveReport:
    """Let peers that cheat this way join ``swarm``, mount the attack, and end them.

    Args:
        swarm: at least three honest peers; others are left out of account.
        kind: of `ATTACKS`.
        reference: what `reference_text` gave.

    Raises:
        SwarmError: a process died or didn't start.
    """
    started = time.monotonic()
    attack = ATTACKS[kind]
    honest = [peer for peer in swarm.peers if peer.is_running and not peer.cheat]
    hostile = [swarm.add(cheat=kind, price_micros=price) for price in _prices(attack)]
    try:
        swarm.wait_until_acquainted()
        mount = {
            Role.EXECUTOR: _executors,
            Role.VERIFIER: _verifiers,
            Role.REQUESTER: _requesters,
            Role.STRANGER: _strangers,
        }[attack.role]
        is_caught, happened, text = mount(swarm, attack, honest, hostile)
        convicted_by = _convicted_by(honest, hostile) if attack.is_provable else 0
        harmed = sum(_convicts(peer, other) for peer in honest for other in honest if other is not peer)
        is_right = text == reference
    finally:
        for peer in hostile:
            swarm.remove(peer)
    return LiveReport(kind, happened, is_caught, convicted_by, is_right, harmed, time.monotonic() - started)


def _prices(attack: Attack) -> list[int]:
    match attack.role:
        case Role.EXECUTOR:
            return [CHEAT_PRICE_MICROS] + [DEAR_MICROS] * _RING.get(attack.kind, 0)
        case Role.VERIFIER:
            return [DEAR_MICROS] * 2
    return [DEAR_MICROS]


# --- By role -----------------------------------------------------------------------------------------

Mounted = tuple[bool, str, str]
"""Whether it was caught, what happened, and the honest client's text."""


def _executors(swarm: Swarm, attack: Attack, honest: list[SwarmPeer], hostile: list[SwarmPeer]) -> Mounted:
    cheat = hostile[0].peer_id
    if attack.kind == "copied-result":
        # First it verifies the job for somebody else, with everybody drawn.
        _run(swarm.requester, exclude=[cheat], verifiers=16)
    events, summary = _run(swarm.requester, verifiers=4)
    if attack.is_provable and attack.kind != "equivocation":
        ends = [e for e in events if e["event"] == "segment-verdict" and e["executor"] == cheat]
        verdicts = [str(event["verdict"]) for event in ends]
        return verdicts == ["fraud"], f"verdict {', '.join(verdicts) or 'none'}", summary["text"]
    ends = [e for e in events if e["event"] == "attempt-failed" and e["peer"] == cheat]
    outcomes = [str(event["outcome"]) for event in ends]
    return outcomes == [_OUTCOMES[attack.kind]], f"attempt ended: {', '.join(outcomes)}", summary["text"]


def _verifiers(swarm: Swarm, attack: Attack, honest: list[SwarmPeer], hostile: list[SwarmPeer]) -> Mounted:
    keys = {peer.peer_id for peer in hostile}
    # More are expected than there are, so all are drawn.
    events, summary = _run(swarm.requester, verifiers=16)
    drawn = {e["peer"] for e in events if e["event"] == "verifier-drawn"} & keys
    revealed = {e["peer"] for e in events if e["event"] == "verdict"} & keys
    paid = {e["peer"] for e in events if e["event"] == "paid"} & keys
    happened = f"{len(drawn)} drawn, {len(revealed)} revealed, {len(paid)} paid"
    if attack.kind == "false-accusation":
        fallen = _wait_for(lambda: sum("false-accusation" in peer.log.read_text() for peer in honest) > 0)
        return fallen, happened + ", accusation fell" * fallen, summary["text"]
    if attack.kind == "copied-verdict":
        return len(drawn) == 2 and len(revealed) == 1 == len(paid), happened, summary["text"]
    return bool(drawn) and not paid, happened, summary["text"]


def _requesters(swarm: Swarm, attack: Attack, honest: list[SwarmPeer], hostile: list[SwarmPeer]) -> Mounted:
    (rider,) = hostile
    others = [peer.peer_id for peer in honest[:-1]]
    target = honest[-1]
    if attack.kind == "free-rider":
        # Always to the same executor, which works until its credit is used up.
        states: list[str] = []
        while len(states) < RIDES_MAX and (not states or states[-1] == "verified"):
            states.append(_run(rider, tokens=400, exclude=others, rebids=1)[1]["state"])
        happened = f"{states.count('verified')} jobs of 400 tokens, then {states[-1]}"
        is_caught = states[-1] != "verified"
    else:
        _run(rider, exclude=others)
        is_caught = _wait_for(lambda: "delivered" in target.log.read_text())
        with target.connect() as client:
            happened = f"voucher refused, {client.status()['earned_micros']} micro-units earned in all"
    _, summary = _run(swarm.requester)
    return is_caught, happened, summary["text"]


def _strangers(swarm: Swarm, attack: Attack, honest: list[SwarmPeer], hostile: list[SwarmPeer]) -> Mounted:
    events, summary = _run(swarm.requester)
    winner = next(str(event["peer"]) for event in events if event["event"] == "awarded")
    if attack.kind == "forged-capability":
        is_caught = winner not in {peer.peer_id for peer in hostile}
        return is_caught, "not believed" if is_caught else "believed", summary["text"]
    points = 0.0
    for peer in honest:
        with peer.connect() as client:
            rows = {row["peer_id"]: row for row in client.peers()}
        row = rows.get(hostile[0].peer_id)
        points = max(points, float(row["points"] or 0) if row else 0.0)
        refused = row is None or not row["connected"]
        points = 100.0 if refused else points
    is_caught = attack.kind == "replayed-message" or points > 0
    return is_caught, f"job verified, {points:.0f} points or more charged", summary["text"]


# --- Asking ------------------------------------------------------------------------------------------


def _run(
    peer: SwarmPeer, *, tokens: int = 64, exclude: Sequence[str] = (), verifiers: int = 2, rebids: int = 3
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    document = _JOB.format(
        tokens=tokens, seed=7, exclude=", ".join(exclude), verifiers=verifiers, rebids=rebids
    )
    with peer.connect() as client:
        job_id = client.submit(document.encode())["id"]
        events = list(client.events(job_id))
        return events, client.job(job_id)


def _convicts(peer: SwarmPeer, accused: SwarmPeer) -> bool:
    with peer.connect() as client:
        rows = {row["peer_id"]: row for row in client.peers()}
    return bool(rows.get(accused.peer_id, {}).get("convicted"))


def _convicted_by(honest: list[SwarmPeer], hostile: list[SwarmPeer]) -> int:
    """Of the honest, how many convicted the cheater that most did; gossip takes a moment."""

    def count() -> int:
        return max(sum(_convicts(peer, cheat) for peer in honest) for cheat in hostile)

    _wait_for(lambda: count() == len(honest))
    return count()


def _wait_for(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SPREAD_S
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return held
