"""One scenario, played: its world, its faults, its load, and the report of what came of it."""

from __future__ import annotations

import gc
import random
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from p2p_node.core.node import Act
from p2p_node.core.request import JobRequest
from p2p_node.sim.cast import Cast, cast, model_of, wait_ms
from p2p_node.sim.invariants import InvariantBroken, Invariants
from p2p_node.sim.measures import PPM, JobTrack, Measures, percentiles
from p2p_node.sim.regional import Cut, RegionalCarrier
from p2p_node.sim.scenario import job_request
from p2p_node.sim.scenariofile import Gray, Load, Partition, Scenario, ppm
from p2p_node.sim.workload import SimTask
from p2p_node.sim.world import Peer, World

__all__ = ["Play"]

MINUTE_MS = 60_000
LOOK_EACH_MS = 1_000
AFTERMATH_MS = 15_000
"""After the last job has ended: vouchers are confirmed, convictions spread."""

NEIGHBOURS_MIN = 3
"""A peer with fewer looks for others."""

REDIAL_MS = 1_000
_DECISIONS = 0x5EED


class Play:
    """Make it, `run` it, then read `report`."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self._luck = random.Random(scenario.seed ^ _DECISIONS)  # noqa: S311 - it must repeat
        self.cast: Cast = cast(scenario, self._luck)
        network = scenario.network
        sorts = self.cast.classes
        self.carrier = RegionalCarrier(
            seed=scenario.seed,
            region=self.cast.region,
            latency_ms=[list(row) for row in scenario.regions.latency_ms],
            up_kbit=[sort.up_kbit for sort in sorts],
            down_kbit=[sort.down_kbit for sort in sorts],
            neighbours=network.neighbours,
            loss=network.loss,
            gossip_loss=network.gossip_loss,
            duplication=network.duplication,
            reordering=network.reordering,
            jitter_ms=network.jitter_ms,
            surrounded=self.cast.surrounded,
        )
        times = {
            model_of(load.name): SimTask(unit_ms=load.unit_ms, recompute_ms=load.check_ms)
            for load in scenario.loads
        }
        self.world = World(
            seed=scenario.seed,
            capabilities=self.cast.capabilities,
            cheats=self.cast.cheats,
            carrier=self.carrier,
            starts_ms=self.cast.starts_ms,
            work_by_model=times,
            has_graylists=True,
            keeps_notes=False,
        )
        for peer in self.world.peers:
            peer.skew_ms = self.cast.skew_ms[peer.index]
            peer.drift_ppm = self.cast.drift_ppm[peer.index]
        self.invariants = Invariants(self.world)
        self.measures = Measures(self.world)
        self.world.on_step = self._step
        self.warm_up_ms = round(1_000 * scenario.warm_up_s)
        self.load_ends_ms = self.warm_up_ms + round(MINUTE_MS * scenario.minutes)
        self.went: list[int] = []
        """Peers that left for good."""
        self.crashes = 0
        self.restarts = 0
        self._begin()

    def _step(self, peer: Peer, acts: list[Act]) -> None:
        self.invariants.check(peer, acts)
        if acts:
            self.measures.see(peer, acts)

    # --- Playing ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Play it to its end.

        Raises:
            InvariantBroken: a promise didn't hold.
        """
        limit_ms = self.load_ends_ms + max(1_000 * load.total_s for load in self.scenario.loads) + MINUTE_MS
        # Nearly all objects of a world stay: looking through them for garbage takes a fifth of its time.
        gc.disable()
        try:
            until_ms = self.load_ends_ms
            self.world.run(until_ms=until_ms)
            while until_ms < limit_ms and self._open_jobs():
                until_ms += LOOK_EACH_MS
                self.world.run(until_ms=until_ms)
            self.world.run(until_ms=until_ms + AFTERMATH_MS)
            self.invariants.check_end()
        finally:
            gc.enable()

    def _open_jobs(self) -> bool:
        return any(
            track.ended_ms < 0 and not self.measures.is_interrupted(track)
            for track in self.measures.jobs.values()
        )

    def _begin(self) -> None:
        world, scenario = self.world, self.scenario
        world.at(self.warm_up_ms, self._reset_traffic)
        for load in scenario.loads:
            rate = ppm(load.per_peer_hour) * len(self.cast.askers)
            mean_us = 3_600_000_000 * PPM // max(1, rate)
            self._next_job(load, mean_us, 1_000 * self.warm_up_ms)
        for partition in scenario.partitions:
            self._plan_partition(partition)
        for gray in scenario.grays:
            self._plan_gray(gray)
        churn = scenario.churn
        for share, action in (
            (churn.leaves_per_minute, self._leave),
            (churn.crashes_per_minute, self._crash),
        ):
            rate = ppm(share) * scenario.peers
            if rate:
                first_ms = max(self.warm_up_ms, round(1_000 * churn.from_s))
                self._repeat(first_ms, MINUTE_MS * PPM // rate, action)

    def _reset_traffic(self) -> None:
        fresh = type(self.carrier.traffic).of(len(self.world.peers))
        self.carrier.traffic = fresh

    # --- Load ------------------------------------------------------------------------------------

    def _next_job(self, load: Load, mean_us: int, after_us: int) -> None:
        at_us = after_us + wait_ms(self._luck, mean_us)
        if at_us < 1_000 * self.load_ends_ms:
            after_ms = at_us // 1_000 - self.world.elapsed_ms
            self.world.at(after_ms, partial(self._submit, load, mean_us, at_us))

    def _submit(self, load: Load, mean_us: int, at_us: int) -> None:
        self._next_job(load, mean_us, at_us)
        asker = self.world.peers[self.cast.askers[self._luck.randrange(len(self.cast.askers))]]
        if not asker.is_up or asker.stuck_until_ms > self.world.now_ms:
            return  # Nobody is there to ask.
        measures = self.measures
        number = len(measures.jobs)
        request = job_of(load, number)
        job_id = self._offered(asker, request, number, load.name)
        track = measures.jobs[job_id]
        job = asker.core.jobs[job_id]
        if job.attempts and track.awarded_ms < 0:
            track.awarded_ms = track.submitted_ms  # A posted job is awarded while it is submitted.

    def _offered(self, asker: Peer, request: JobRequest, number: int, kind: str) -> bytes:
        world = self.world
        job_id = world.submit(asker, request)
        self.measures.jobs[job_id] = JobTrack(
            number, job_id, kind, asker.index, not asker.cheat, world.elapsed_ms, asker.lives
        )
        job = asker.core.jobs[job_id]
        if job.is_final:
            track = self.measures.jobs[job_id]
            track.ended_ms, track.state, track.reason = world.elapsed_ms, job.state.value, job.reason
        return job_id

    # --- Faults ----------------------------------------------------------------------------------

    def _drawn(self, share: float, total: int) -> list[int]:
        return sorted(self._luck.sample(range(total), ppm(share) * total // PPM))

    def _plan_partition(self, partition: Partition) -> None:
        total = len(self.world.peers)
        inside = np.zeros(total, np.bool_)
        if partition.regions:
            places = {self.scenario.regions.names.index(name) for name in partition.regions}
            inside[[i for i, place in enumerate(self.cast.region) if place in places]] = True
        else:
            inside[self._drawn(partition.share, total)] = True
        cut = Cut(inside, partition.direction)
        self.world.at(round(1_000 * partition.from_s), partial(self.carrier.cuts.append, cut))
        self.world.at(round(1_000 * partition.until_s), partial(self.carrier.cuts.remove, cut))

    def _plan_gray(self, gray: Gray) -> None:
        for index in self._drawn(gray.share, len(self.world.peers)):
            peer = self.world.peers[index]
            from_ms, until_ms = round(1_000 * gray.from_s), round(1_000 * gray.until_s)
            self.world.at(from_ms, partial(self._ail, peer, gray, until_ms))
            if gray.kind != "stuck":
                self.world.at(until_ms, partial(self._recover, peer))

    def _ail(self, peer: Peer, gray: Gray, until_ms: int) -> None:
        if gray.kind == "slow":
            peer.slowness = gray.factor
        elif gray.kind == "stuck":
            peer.stuck_until_ms = self.world.now_ms - self.world.elapsed_ms + until_ms
        else:
            self.carrier.gray(peer.index, deaf=gray.kind == "deaf", mute=gray.kind == "mute")

    def _recover(self, peer: Peer) -> None:
        peer.slowness = 1
        self.carrier.gray(peer.index, deaf=False, mute=False)

    # --- Churn -----------------------------------------------------------------------------------

    def _repeat(self, after_ms: int, mean_ms: int, action: Any) -> None:
        at_ms = after_ms + wait_ms(self._luck, mean_ms)
        if at_ms < self.load_ends_ms:
            self.world.at(at_ms - self.world.elapsed_ms, partial(self._again, at_ms, mean_ms, action))

    def _again(self, at_ms: int, mean_ms: int, action: Any) -> None:
        self._repeat(at_ms, mean_ms, action)
        up = [peer for peer in self.world.peers if peer.is_up]
        if len(up) > NEIGHBOURS_MIN:
            action(up[self._luck.randrange(len(up))])

    def _leave(self, peer: Peer) -> None:
        self.went.append(peer.index)
        self._vanish(peer, noticed_ms=100)

    def _crash(self, peer: Peer) -> None:
        self.crashes += 1
        low, high = (round(1_000 * seconds) for seconds in self.scenario.churn.restart_s)
        self._vanish(peer)
        self.world.at(self._luck.randint(low, high), partial(self._restart, peer))

    def _vanish(self, peer: Peer, **how: int) -> None:
        others = sorted(self.world.links[peer.index])
        self.world.crash(peer, **how)
        for index in others:
            self.world.at(REDIAL_MS + 100 * (index % 10), partial(self._redial, self.world.peers[index]))

    def _redial(self, peer: Peer) -> None:
        if peer.is_up and len(self.world.links[peer.index]) < NEIGHBOURS_MIN:
            for other in self.carrier.neighbours(self.world, peer):
                self.world.connect(peer, other)

    def _restart(self, peer: Peer) -> None:
        self.restarts += 1
        self.world.start(peer)
        self.invariants.check_restart(peer)

    # --- Report ----------------------------------------------------------------------------------

    def report(self, broken: InvariantBroken | None = None) -> dict[str, Any]:
        """All that was measured: integers, names, lists and mappings of them."""
        world, measures, scenario = self.world, self.measures, self.scenario
        return {
            "scenario": scenario.name,
            "seed": scenario.seed,
            "peers": scenario.peers,
            "network_ms": world.elapsed_ms,
            "events": world.events_total,
            "steps": world.steps_total,
            "trace": world.trace.hex(),
            "jobs": measures.completion(),
            "times_ms": measures.times(),
            "traffic": self._traffic(),
            "gossip": self._gossip(),
            "attacks": measures.attacks(),
            "detection_ppm": measures.detection_ppm(),
            "false_convictions": measures.false_convictions(),
            "earnings": measures.earnings(),
            "churn": {
                "joined": sum(peer.index >= scenario.peers and peer.lives > 0 for peer in world.peers),
                "left": len(self.went),
                "crashed": self.crashes,
                "restarted": self.restarts,
            },
            "registry": percentiles([len(peer.core.registry) for peer in world.peers if peer.is_up]),
            "by_minute": measures.by_minute(),
            "invariants": {
                "checks": self.invariants.checks_total,
                "broken": None if broken is None else str(broken),
                "job": broken.job_id.hex() if broken is not None and broken.job_id else None,
            },
        }

    def _gossip(self) -> dict[str, Any]:
        traffic = self.carrier.traffic
        rooms = [len(members) for members in self.world.present.values() if members]
        return {
            "messages": sum(traffic.published.values()) - traffic.published["rooms"],
            "flood_reach_ppm": _mean(traffic.reach_ppm),
            "flood_ms": percentiles(traffic.spread_ms),
            "rooms": {
                "messages": traffic.published["rooms"],
                "flood_reach_ppm": _mean(traffic.room_reach_ppm),
                "flood_ms": percentiles(traffic.room_spread_ms),
                "occupied": len(rooms),
                "members": percentiles(rooms),
            },
        }

    def _traffic(self) -> dict[str, Any]:
        traffic = self.carrier.traffic
        jobs = max(1, len(self.measures.jobs))
        peers = self.scenario.peers
        idle = [p.index for p in self.world.peers if not p.core.capability.abilities and p.lives]
        heard = {
            topic: int(counts[idle].sum()) if idle else 0
            for topic, counts in sorted(traffic.gossip_heard.items())
        }
        per = {
            topic: int(traffic.published_bytes[topic]) // max(1, count)
            for topic, count in sorted(traffic.published.items())
        }
        return {
            "counted_ms": self.world.elapsed_ms - self.warm_up_ms,
            "messages_per_peer_per_job_milli": 1_000
            * (sum(traffic.frames) + int(traffic.gossip_sent.sum()))
            // (peers * jobs),
            "bytes_per_peer_per_job": (sum(traffic.frame_bytes) + int(traffic.gossip_bytes.sum()))
            // (peers * jobs),
            "frames": sum(traffic.frames),
            "frame_bytes": sum(traffic.frame_bytes),
            "gossip_sent": int(traffic.gossip_sent.sum()),
            "gossip_bytes": int(traffic.gossip_bytes.sum()),
            "published": dict(sorted(traffic.published.items())),
            "published_bytes_mean": per,
            "idle_peers": len(idle),
            "idle_heard_per_peer_per_job_milli": {
                topic: 1_000 * count // max(1, len(idle) * jobs) for topic, count in heard.items()
            },
        }


def job_of(load: Load, number: int) -> JobRequest:
    """The job number ``number`` of a scenario, of this kind."""
    return replace(
        job_request(number, units=load.units, mode=load.mode),
        model=model_of(load.name),
        expected_verifiers_milli=round(1_000 * load.verifiers),
        samples=load.samples,
        window_ms=load.window_ms,
        answer_ms=load.answer_ms,
        execution_ms=min(60_000, 1_000 * load.total_s) + 4 * load.units * load.unit_ms,
        queue_ms=min(60_000, 500 * load.total_s),
        stall_ms=max(10_000, 3 * 32 * load.unit_ms),
        total_ms=1_000 * load.total_s,
        price_micros_max=10**6,
    )


def _mean(values: list[int]) -> int:
    return sum(values) // len(values) if values else 0
