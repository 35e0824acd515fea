"""Scenarios: what a file may say, that a seed says everything, and that each fault does something."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2p_node.core.request import JobState
from p2p_node.core.requester import Job
from p2p_node.sim.cast import dealt, wait_ms
from p2p_node.sim.invariants import InvariantBroken
from p2p_node.sim.play import Play
from p2p_node.sim.plot import HEIGHT, WIDTH, draw
from p2p_node.sim.scenariofile import Scenario, ScenarioRefused, load_scenario, parse_scenario
from p2p_node.sim.story import story_of
from p2p_node.sim.sweep import run_seed
from p2p_node.sim.world import World
from protocols.effects import Persist
from protocols.envelope import open_envelope
from protocols.messages import Voucher

EXAMPLES = Path(__file__).parents[2] / "examples" / "sim"

SMALL: dict[str, Any] = {
    "peers": 14,
    "minutes": 0.4,
    "class": [{"name": "all", "share": 1.0, "serves": ["text"], "slots": 4}],
    "load": [{"name": "text", "per_peer_hour": 100, "units": 64}],
}


def scenario(**changes: Any) -> Scenario:
    return parse_scenario(SMALL | changes)


def played(**changes: Any) -> tuple[Play, dict[str, Any]]:
    play = Play(scenario(**changes))
    play.run()
    return play, play.report()


@pytest.fixture(scope="module")
def calm() -> dict[str, Any]:
    return played()[1]


# --- Files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.toml")), ids=lambda file: file.stem)
def test_every_example_is_a_scenario(file: Path) -> None:
    assert load_scenario(file, peers=20).peers == 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peers": 3}, "peers: Expected `int` >= 4, got 3"),
        ({"peer": 9}, "peer is not a key of a scenario; did you mean peers?"),
        ({"network": {"lost": 0.1}}, "network.lost is not a key of a scenario; did you mean loss?"),
        ({"network": {"loss": 1.5}}, "network.loss: Expected `float` <= 0.9, got 1.5"),
        ({"load": [{"name": "text"}]}, r"load\[0\].per_peer_hour is missing"),
        ({"hostile": [{"kind": "wrong-resul", "share": 0.1}]}, "hostile.kind: did you mean wrong-result?"),
        ({"gray": [{"kind": "ill", "share": 0.1}]}, r"gray\[0\].kind: .*got 'ill'"),
        ({"regions": {"names": ["a", "b"], "latency_ms": [[1]]}}, "regions.latency_ms: 2 rows of 2, got"),
        ({"partition": [{"from_s": 9, "until_s": 3, "share": 0.5}]}, "partition.until_s: after from_s=9"),
        ({"class": [{"name": "x", "share": 0.5, "serves": ["text"]}]}, "class.share: 1 in all, got"),
        (
            {"class": [{"name": "x", "share": 1, "serves": ["other"]}]},
            "class.serves: one of text, got 'other'",
        ),
        ({"churn": {"restart_s": [9, 3]}}, "churn.restart_s: from must not exceed to"),
        ({"minutes": float("nan")}, "minutes: "),
    ],
)
def test_what_a_scenario_may_not_say(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioRefused, match=message.replace("?", r"\?")):
        scenario(**changes)


# --- Determinism ---------------------------------------------------------------------------------


def test_a_seed_says_everything_whatever_python_hashes_by() -> None:
    command = [sys.executable, "-m", "p2p_node", "swarm", "sim", str(EXAMPLES / "home.toml")]
    command += ["--peers", "20", "--minutes", "0.6", "-o", "json"]
    reports = [
        subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": seed}, check=True, capture_output=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert reports[0] == reports[1]
    assert json.loads(reports[0])["jobs"]["verified"] > 0


def test_another_seed_is_another_world(calm: dict[str, Any]) -> None:
    assert played()[1] == calm
    assert played(seed=2)[1]["trace"] != calm["trace"]


def test_times_between_events_have_their_mean() -> None:
    luck = random.Random(3)
    drawn = sorted(wait_ms(luck, 10_000) for _ in range(4_000))
    assert 9_500 < sum(drawn) / len(drawn) < 10_500
    # The median of an exponential distribution is ln 2 of its mean.
    assert 6_500 < drawn[2_000] < 7_400


def test_shares_are_dealt_out_whole() -> None:
    assert dealt([0.5, 0.3, 0.2], 7) == [4, 2, 1]
    assert dealt([0.1, 0.1], 10) == [1, 1]


# --- What is measured ----------------------------------------------------------------------------


def test_a_calm_network_verifies_every_job(calm: dict[str, Any]) -> None:
    jobs = calm["jobs"]
    assert jobs["submitted"] == jobs["verified"] > 5
    assert calm["gossip"]["flood_reach_ppm"] == 1_000_000
    assert calm["false_convictions"] == jobs["false_answers"] == 0
    assert calm["traffic"]["bytes_per_peer_per_job"] > 0
    assert calm["earnings"]["honest"]["mean_micros"] > 0
    assert calm["invariants"]["checks"] > 1_000


def test_the_picture_is_one(calm: dict[str, Any]) -> None:
    picture = draw(calm)
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(picture[16:20]), int.from_bytes(picture[20:24])) == (WIDTH, HEIGHT)


def far() -> dict[str, Any]:
    return {"regions": {"names": ["here"], "latency_ms": [[400]]}}


def p50(report: dict[str, Any]) -> int:
    return int(report["times_ms"]["text"]["result"]["p50"])


Fault = tuple[dict[str, Any], Callable[[dict[str, Any], dict[str, Any]], bool]]

FAULTS: dict[str, Fault] = {
    "latency": (far(), lambda bad, calm: p50(bad) > p50(calm) + 1_000),
    "bandwidth": (
        {"class": [SMALL["class"][0] | {"up_kbit": 32, "down_kbit": 32}]},
        lambda bad, calm: p50(bad) > p50(calm) + 500,
    ),
    "loss": (
        {"network": {"loss": 0.3}},
        lambda bad, calm: bad["traffic"]["frames"] > 1.2 * calm["traffic"]["frames"],
    ),
    "gossip loss": (
        {"network": {"gossip_loss": 0.6}},
        lambda bad, calm: bad["gossip"]["flood_reach_ppm"] < 990_000,
    ),
    "duplication": ({"network": {"duplication": 0.5}}, lambda bad, calm: bad["steps"] > 1.1 * calm["steps"]),
    "reordering": ({"network": {"reordering": 0.8}}, lambda bad, calm: p50(bad) > p50(calm)),
    "partition": (
        {"partition": [{"from_s": 6, "until_s": 25, "share": 0.5}]},
        lambda bad, calm: bad["gossip"]["flood_reach_ppm"] < 900_000,
    ),
    "one way": (
        {"partition": [{"from_s": 6, "until_s": 25, "share": 0.5, "direction": "out"}]},
        lambda bad, calm: 600_000 < bad["gossip"]["flood_reach_ppm"] < 980_000,
    ),
    "skew": (
        # Further off than the protocol allows: what is said is refused as from the future, or as too late.
        {"clock": {"skew_ms": 90_000}},
        lambda bad, calm: bad["network_ms"] > calm["network_ms"] + 20_000,
    ),
    "churn": (
        {"churn": {"crashes_per_minute": 0.8, "restart_s": [2, 5], "joins_per_minute": 0.5}},
        lambda bad, calm: bad["churn"]["restarted"] > 1 and bad["churn"]["joined"] > 0,
    ),
    "leaving": (
        {"churn": {"leaves_per_minute": 1.0}},
        lambda bad, calm: bad["churn"]["left"] > 2 and bad["churn"]["restarted"] == 0,
    ),
    "slow": (
        {"gray": [{"kind": "slow", "share": 1.0, "factor": 20}]},
        lambda bad, calm: p50(bad) > p50(calm) + 2_000,
    ),
    "stuck": (
        {"gray": [{"kind": "stuck", "share": 0.5, "from_s": 8, "until_s": 25}]},
        lambda bad, calm: (
            bad["times_ms"]["text"]["result"]["p99"] > calm["times_ms"]["text"]["result"]["p99"]
        ),
    ),
    "deaf": (
        {"gray": [{"kind": "deaf", "share": 0.3}]},
        lambda bad, calm: bad["gossip"]["flood_reach_ppm"] < 800_000,
    ),
    "mute": (
        {"gray": [{"kind": "mute", "share": 0.3}]},
        lambda bad, calm: bad["gossip"]["flood_reach_ppm"] < 900_000,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_does_something_and_breaks_no_promise(fault: str, calm: dict[str, Any]) -> None:
    changes, shows = FAULTS[fault]
    bad = played(**changes)[1]
    assert shows(bad, calm), bad
    assert bad["false_convictions"] == bad["jobs"]["false_answers"] == 0


def test_cheats_are_caught_and_earn_less() -> None:
    hostile = [{"kind": "wrong-result", "share": 0.15}, {"kind": "silent-verifier", "share": 0.15}]
    report = played(hostile=hostile, minutes=0.6)[1]
    caught = report["attacks"]["wrong-result"]
    assert caught["contracts"] > 0
    assert caught["results_accepted"] == 0
    assert caught["peers_convicted"] > 0
    assert report["detection_ppm"] == 1_000_000
    earned = report["earnings"]
    assert earned["wrong-result"]["mean_micros"] < earned["honest"]["mean_micros"]


def test_a_hostile_third_fails_no_job() -> None:
    kinds = ("wrong-result", "withheld-opening", "equivocation", "spoofed-tokens")
    hostile = [{"kind": kind, "share": 0.1} for kind in kinds]
    report = played(hostile=hostile, minutes=0.6)[1]
    # Everybody's first jobs meet one after another that underbids and cheats.
    assert report["attacks"]["withheld-opening"]["contracts"] > 3
    assert report["jobs"]["verified"] == report["jobs"]["submitted"] > 5


# --- Promises that break -------------------------------------------------------------------------


def paid_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    perform = World._perform

    def again(world: World, peer: Any, acts: list[Any]) -> None:
        for act in [a for a in acts if isinstance(a, Persist) and a.table == "vouchers" and a.value]:
            voucher = open_envelope(act.value, network="sim", crypto=world._crypto, expect=Voucher)
            if voucher.signer == peer.core.key:
                body = voucher.body
                more = type(body)(
                    body.lane,
                    body.payee,
                    body.sequence + 1,
                    body.settled_micros,
                    0,
                    body.matures_ms,
                    body.evidence,
                )
                acts = [*acts, Persist(act.table, act.key, peer.core.sign(more).raw)]
        perform(world, peer, acts)

    monkeypatch.setattr(World, "_perform", again)


def says_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    conclude = Job._conclude

    def lie(job: Job, state: JobState, reason: str, now_ms: int) -> Any:
        job.request = job.request.__class__(
            **{f: getattr(job.request, f) for f in job.request.__slots__} | {"units_max": 9_999}
        )
        return conclude(job, state, reason, now_ms)

    monkeypatch.setattr(Job, "_conclude", lie)


def never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Job, "_conclude", lambda *arguments: [])


def forgets_what_it_owes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2p_node.core.outbox.Outbox.restore", lambda *arguments: [])
    monkeypatch.setattr("p2p_node.core.outbox.Outbox.acknowledged", lambda *arguments: [])


@pytest.mark.parametrize(
    ("mutate", "promise", "changes"),
    [
        (paid_twice, "nobody is paid twice", {}),
        (says_verified, "the whole output is there", {}),
        (never_ends, "an accepted job ends in time", {"load": [SMALL["load"][0] | {"total_s": 8}]}),
        (
            forgets_what_it_owes,
            "an obligation outlives a restart",
            {"churn": {"crashes_per_minute": 2.0, "restart_s": [1, 2]}},
        ),
    ],
)
def test_a_mutant_breaks_its_promise(
    mutate: Callable[[pytest.MonkeyPatch], None],
    promise: str,
    changes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mutate(monkeypatch)
    with pytest.raises(InvariantBroken, match=promise):
        Play(scenario(**changes)).run()


def test_a_broken_promise_tells_the_story_of_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    says_verified(monkeypatch)
    lines = list(story_of(scenario(), "broken", is_short=True))
    assert "the whole output is there" in lines[0]
    assert "BROKEN" in lines[-1]
    assert any("segment-verdict" in line for line in lines)


def test_a_story_is_of_one_job() -> None:
    lines = list(story_of(scenario(), "1"))
    assert "submits job 1" in lines[0]
    assert any("finished" in line and '"verified"' in line for line in lines)
    assert not any("advert" in line for line in lines)
    with pytest.raises(ScenarioRefused, match="no job '999'"):
        list(story_of(scenario(minutes=0.1), "999"))


# --- Seeds that broke something once -------------------------------------------------------------

REGRESSIONS: tuple[tuple[str, int, int, float], ...] = ()
"""(example, seed, peers, minutes), found by `make sweep`."""


@pytest.mark.parametrize(("name", "seed", "peers", "minutes"), [("churn", 1, 14, 0.5), *REGRESSIONS])
def test_seeds(name: str, seed: int, peers: int, minutes: float) -> None:
    assert run_seed(str(EXAMPLES / f"{name}.toml"), seed, peers, minutes).broken == ""
