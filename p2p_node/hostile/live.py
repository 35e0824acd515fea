"""Each attack once, by real processes over real libp2p, and what came of it.

A swarm of honest peers stays; hostile ones join it for one attack and are ended after it. What is
reported is what a user could see: events, receipts, other peers' opinions, and the nodes' logs.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from p2p_node.core.keyring import RealCrypto
from p2p_node.hostile.catalogue import ATTACKS, Attack, Role
from p2p_node.receipts import check_file
from p2p_node.swarm import CHEAT_PRICE_MICROS, PRICE_MICROS, Swarm, SwarmPeer
from workloads.registry import KINDS

__all__ = ["VERSE", "LiveReport", "attack_live"]

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
  {task}
placement:
  exclude: [{exclude}]
auction:
  window: 1500ms
  rebids: {rebids}
verify:
  profile: {profile}
  verifiers: {verifiers}
  chunks: all
  reveal: 6s
timeouts:
  queue: 20s
"""

_VERSE = """workload: lm.generate
  model: kjv-2m
  prompt: "And it came to pass"
  max_tokens: {tokens}
  seed: 7"""
VERSE = _VERSE.format(tokens=64)
"""The task of most attacks."""

_TRAINING = """workload: training.run
  llama: {vocabulary: 128, hidden: 16, inner: 32, layers: 1, heads: 2, key_value_heads: 1, head_width: 8,
    positions: 16}
  segments: 2
  segment_steps: 3
  batch: 4
  learning_rate: 0.01
  seed: 3
  text: |
    In the beginning God created the heaven and the earth.
    And the earth was without form, and void."""
_PROGRAM = f"""workload: program.run
  program: {{packed: {base64.b64encode(KINDS["program.run"].probe()).decode()}}}"""
_TASKS = {
    "withheld-blob": f"{VERSE}\n  logprobs: 1",
    "fewer-steps": """workload: diffusion.sample
  model: digits-8x8
  labels: [3]
  steps: 8
  seed: 7
  guidance: 2""",
    "fabricated-tiles": """workload: render.trace
  width: 64
  height: 32
  samples: 8
  depth: 3
  seed: 1
  background: [0.55, 0.7, 1]
  camera: {position: [0, 1.2, 4.6], target: [0, 0.75, 0], focal: 1.3}
  materials:
    - {name: clay, albedo: [0.85, 0.35, 0.25]}
  spheres:
    - {centre: [0, 0.8, 0], radius: 0.8, material: clay}""",
    "fewer-terms": """workload: linalg.matmul
  rows: 64
  inner: 512
  columns: 64
  bits: 10
  left_seed: 1
  right_seed: 2""",
    "altered-operator": _PROGRAM,
    "skipped-operator": _PROGRAM,
    "altered-training-step": _TRAINING,
    "skipped-training-step": _TRAINING,
}
"""Of the kinds that cheat at other work."""

_RING = {"sybil-swarm": 2, "eclipse": 2}
"""Keys beside the executor's that only verify."""

_OUTCOMES = {
    "equivocation": "output and commitment differ",
    "copied-result": "opening withheld",
    "withheld-opening": "opening withheld",
    "withheld-blob": "output withheld",
}


@dataclass(frozen=True, slots=True)
class LiveReport:
    """One attack, mounted by real processes.

    Args:
        kind: of attack.
        happened: what its check did, in a few words.
        is_caught: whether that is what the catalogue promises.
        convicted_by: honest peers that convicted each convicted cheater, at least.
        is_answer_right: whether the honest client's output is the one that an honest swarm gives.
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


def attack_live(swarm: Swarm, kind: str, known: dict[str, tuple[int, ...]]) -> LiveReport:
    """Let peers that cheat this way join ``swarm``, mount the attack, and end them.

    Args:
        swarm: at least three honest peers; others are left out of account.
        kind: of `ATTACKS`.
        known: the output units of each task where nobody cheats; what is missing is run and added.

    Raises:
        SwarmError: a process died or didn't start.
    """
    started = time.monotonic()
    attack = ATTACKS[kind]
    honest = [peer for peer in swarm.peers if peer.is_running and not peer.cheat]
    task = _TASKS.get(kind, VERSE)
    # Blobs that the client has from an earlier run can't be withheld from it.
    if task not in known and kind != "withheld-blob":
        known[task] = _run(swarm.requester, task)[1]
    hostile = [swarm.add(cheat=kind, price_micros=price) for price in _prices(attack)]
    try:
        # Whoever says only rubbish may be refused before it has said what it offers.
        swarm.wait_until_acquainted(outcasts=hostile if kind == "malformed-bytes" else ())
        mount = {
            Role.EXECUTOR: _executors,
            Role.VERIFIER: _verifiers,
            Role.REQUESTER: _requesters,
            Role.STRANGER: _strangers,
        }[attack.role]
        is_caught, happened, units = mount(swarm, attack, honest, hostile)
        convicted_by = _convicted_by(honest, hostile) if attack.is_provable else 0
        harmed = sum(_convicts(peer, other) for peer in honest for other in honest if other is not peer)
        if task not in known:
            known[task] = _run(swarm.requester, task)[1]
        is_right = units == known[task]
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
    return [PRICE_MICROS + 1 if attack.kind == "forged-capability" else DEAR_MICROS]


# --- By role -----------------------------------------------------------------------------------------

Mounted = tuple[bool, str, tuple[int, ...]]
"""Whether it was caught, what happened, and the output units that the honest client got."""


def _executors(swarm: Swarm, attack: Attack, honest: list[SwarmPeer], hostile: list[SwarmPeer]) -> Mounted:
    cheat, task = hostile[0].peer_id, _TASKS.get(attack.kind, VERSE)
    if attack.kind == "copied-result":
        # First it verifies the job for somebody else, with everybody drawn.
        _run(swarm.requester, exclude=[cheat], verifiers=16)
    events, units = _run(swarm.requester, task, verifiers=4)
    if attack.is_provable and attack.kind != "equivocation":
        ends = [e for e in events if e["event"] == "segment-verdict" and e["executor"] == cheat]
        verdicts = [str(event["verdict"]) for event in ends]
        return verdicts == ["fraud"], f"verdict {', '.join(verdicts) or 'none'}", units
    ends = [e for e in events if e["event"] == "attempt-failed" and e["peer"] == cheat]
    outcomes = [str(event["outcome"]) for event in ends]
    return outcomes == [_OUTCOMES[attack.kind]], f"attempt ended: {', '.join(outcomes)}", units


def _verifiers(swarm: Swarm, attack: Attack, honest: list[SwarmPeer], hostile: list[SwarmPeer]) -> Mounted:
    keys = {peer.peer_id for peer in hostile}
    # More are expected than there are, so all are drawn.
    events, units = _run(swarm.requester, verifiers=16)
    drawn = {e["peer"] for e in events if e["event"] == "verifier-drawn"} & keys
    revealed = {e["peer"] for e in events if e["event"] == "verdict"} & keys
    paid = {e["peer"] for e in events if e["event"] == "paid"} & keys
    happened = f"{len(drawn)} drawn, {len(revealed)} revealed, {len(paid)} paid"
    if attack.kind == "false-accusation":
        fallen = _wait_for(lambda: sum("false-accusation" in peer.log.read_text() for peer in honest) > 0)
        return fallen, happened + ", accusation fell" * fallen, units
    if attack.kind == "copied-verdict":
        return len(drawn) == 2 and len(revealed) == 1 == len(paid), happened, units
    return bool(drawn) and not paid, happened, units


def _requesters(swarm: Swarm, attack: Attack, honest: list[SwarmPeer], hostile: list[SwarmPeer]) -> Mounted:
    (rider,) = hostile
    others = [peer.peer_id for peer in honest[:-1]]
    target = honest[-1]
    if attack.kind == "free-rider":
        # Always to the same executor, which works until its credit is used up.
        states: list[str] = []
        while len(states) < RIDES_MAX and (not states or states[-1] == "verified"):
            long = _VERSE.format(tokens=400)
            states.append(str(_run(rider, long, exclude=others, rebids=1)[0][-1]["state"]))
        happened = f"{states.count('verified')} jobs of 400 tokens, then {states[-1]}"
        is_caught = states[0] == "verified" != states[-1]
    else:
        _run(rider, exclude=others)
        is_caught = _wait_for(lambda: "delivered" in target.log.read_text())
        happened = "voucher refused" if is_caught else "voucher taken"
    _, units = _run(swarm.requester)
    return is_caught, happened, units


def _strangers(swarm: Swarm, attack: Attack, honest: list[SwarmPeer], hostile: list[SwarmPeer]) -> Mounted:
    (stranger,) = hostile
    if attack.kind == "forged-capability":
        # So long a job that its boast outweighs the little more that it asks.
        events, _ = _run(swarm.requester, _VERSE.format(tokens=400))
        winner = next(event["peer"] for event in events if event["event"] == "awarded")
        is_caught = winner != stranger.peer_id
        return is_caught, "not believed" if is_caught else "believed", _run(swarm.requester)[1]
    _, units = _run(swarm.requester)
    refusals = sum(_refuses(peer, stranger) for peer in honest)
    # What is said again breaks no rule where it was said before.
    is_caught = attack.kind == "replayed-message" or refusals > 0
    return is_caught, f"job verified; refused or charged by {refusals} of {len(honest)}", units


# --- Asking ------------------------------------------------------------------------------------------


def _run(
    peer: SwarmPeer,
    task: str = VERSE,
    *,
    exclude: Sequence[str] = (),
    verifiers: int = 2,
    rebids: int = 3,
) -> tuple[list[dict[str, Any]], tuple[int, ...]]:
    """The job's events, and its verified output by its receipt."""
    document = _JOB.format(
        task=task,
        profile="exact21" if "training" in task else "exact14",
        exclude=", ".join(exclude),
        verifiers=verifiers,
        rebids=rebids,
    )
    with peer.connect() as client:
        job_id = client.submit(document.encode())["id"]
        events = list(client.events(job_id))
        return events, check_file(client.receipt(job_id), RealCrypto()).units


def _convicts(peer: SwarmPeer, accused: SwarmPeer) -> bool:
    with peer.connect() as client:
        rows = {row["peer_id"]: row for row in client.peers()}
    return bool(rows.get(accused.peer_id, {}).get("convicted"))


def _refuses(peer: SwarmPeer, stranger: SwarmPeer) -> bool:
    """Whether a peer charged a stranger, or has cut it off."""
    with peer.connect() as client:
        rows = {row["peer_id"]: row for row in client.peers()}
    row = rows.get(stranger.peer_id)
    return row is None or not row["connected"] or row["points"] > 0


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
