"""`make demo`: five peers, one real job, its proof; then the same job again with a cheater among them.

Everything shown is what the peers' own APIs and the signed receipts say. The exit code is 0 only if all
that the demonstration claims was true.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from p2p_node.cli.durations import duration_text
from p2p_node.cli.story import Line, Story, harmless, short_peer
from p2p_node.core.keyring import RealCrypto
from p2p_node.errors import UserError
from p2p_node.receipts import ReceiptError, check_file
from p2p_node.recompute import recompute_receipt
from p2p_node.swarm import Swarm, SwarmPeer, running_swarm
from protocols.identity import peer_id
from protocols.units import FALSE_UNITS
from verification.receipt import ReceiptReport

__all__ = ["main", "show"]

CHEAT = "quantized-weights"
JOB = Path("examples") / "verse.yaml"
RECEIPT = Path("receipt.json")
_STYLES = {"good": "green", "bad": "bold red", "": ""}


@dataclass(slots=True)
class _Run:
    """One job from the requester's first event to its receipt."""

    story: Story
    events: list[dict[str, Any]]
    text: str
    receipt: bytes
    work: dict[str, _Work]


@dataclass(slots=True)
class _Work:
    """What one peer spent on one job, and earned by it."""

    executed_cpu_us: int = 0
    recomputed_cpu_us: int = 0
    earned_micros: int = 0


@dataclass(slots=True)
class _Demo:
    console: Console
    failures: list[str] = field(default_factory=list)

    # --- Saying ----------------------------------------------------------------------------------

    def title(self, text: str) -> None:
        self.console.print()
        self.console.rule(Text(text, style="bold"), align="left")

    def say(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style=style))

    def check(self, holds: bool, claim: str) -> None:
        """Say whether a claim holds; one that doesn't fails the demonstration."""
        self.console.print(
            Text("  holds   " if holds else "  FAILED  ", "green" if holds else "bold red"), claim
        )
        if not holds:
            self.failures.append(claim)

    # --- A swarm ---------------------------------------------------------------------------------

    def on_event(self, event: str, details: Mapping[str, Any]) -> None:
        match event:
            case "measured":
                found = details["measured"]
                self.say(
                    f"this machine: {found['cores']} cores, {found['gemm_fp32_mflops'] / 1e3:.0f} GFLOP/s "
                    f"in fp32, memory {found['memory_mib_s'] / 1024:.1f} GiB/s, torch {found['torch']}"
                )
                self.say("starting the peers; each loads torch once, which takes the longest")
            case "up":
                peer: SwarmPeer = details["peer"]
                self.say(f"peer {peer.index} is up: {short_peer(peer.peer_id)}, process {peer.process.pid}")
            case "killed":
                self.say(f"peer {details['peer'].index} was slow to stop and was killed")

    def show_peers(self, swarm: Swarm) -> None:
        """What the requester knows of the others: their signed adverts."""
        table = _table("peer", "address", "model", "tokens/s", "asks per token", numeric=3)
        with swarm.requester.connect() as client:
            for row in client.peers():
                for offering in row["offerings"] or ():
                    rate = f"{offering['rate_milli'] / 1000:.0f}"
                    address = (row["address"] or "").split("/p2p/")[0]
                    table.add_row(
                        short_peer(row["peer_id"]),
                        Text(harmless(address)),
                        Text(harmless(str(offering["model"]))),
                        rate,
                        str(offering["price_micros"]),
                    )
        self.console.print(table)

    # --- A job -----------------------------------------------------------------------------------

    def run_job(self, swarm: Swarm, document: bytes) -> _Run:
        """Give the requester a job and show it until it is over."""
        before = _work(swarm)
        story, events = Story(), []
        with swarm.requester.connect() as client:
            job_id = client.submit(document)["id"]
            is_streaming = False
            for event in client.events(job_id):
                events.append(event)
                line = story.hear(event)
                if event["event"] == "output":
                    if not is_streaming:
                        self.console.print(Text(f"{'':9}  {'tokens':<11}"), end="")
                    self.console.print(Text(harmless(event["text"]), style="italic"), end="")
                    is_streaming = True
                elif line is not None:
                    if is_streaming:
                        self.console.print()
                    is_streaming = False
                    self._show(line)
            text, receipt = client.job(job_id)["text"], client.receipt(job_id)
        after = _work(swarm)
        work = {
            peer: _Work(
                now.executed_cpu_us - before[peer].executed_cpu_us,
                now.recomputed_cpu_us - before[peer].recomputed_cpu_us,
                now.earned_micros - before[peer].earned_micros,
            )
            for peer, now in after.items()
            if peer in before
        }
        return _Run(story, events, text, receipt, work)

    def _show(self, line: Line) -> None:
        self.console.print(Text(str(line), style=_STYLES[line.tone]), soft_wrap=True)

    def show_work(self, run: _Run, requester: SwarmPeer) -> None:
        """Who computed what for a job, and what it earned by it."""
        table = _table("peer", "part", "executing", "recomputing", "earned", numeric=2)
        for peer, work in run.work.items():
            parts = ["asked"] if peer == requester.peer_id else []
            if peer in _awarded(run.events):
                parts.append("executed" if peer == run.story.executor else "cheated")
            if peer in run.story.verifiers:
                parts.append("verified")
            elif work.recomputed_cpu_us:
                parts.append("settled the dispute for itself")
            table.add_row(
                short_peer(peer),
                ", ".join(parts) or "-",
                _milliseconds(work.executed_cpu_us),
                _milliseconds(work.recomputed_cpu_us),
                str(work.earned_micros),
            )
        self.console.print(table)

    def check_receipt(self, data: bytes, path: Path) -> ReceiptReport | None:
        """Write a receipt, check it as a stranger would, and see a damaged copy refused."""
        path.write_bytes(data)
        try:
            report = check_file(path.read_bytes(), RealCrypto())
        except ReceiptError as error:
            self.check(False, f"{path} is a valid receipt: {error}")
            return None
        self.check(True, f"{path}: every signature, commitment, draw, opening, verdict and payment, offline")
        middle = data.index(b'"evidence"') + len(data) // 4
        damaged = data[:middle] + (b"A" if data[middle : middle + 1] != b"A" else b"B") + data[middle + 1 :]
        try:
            check_file(damaged, RealCrypto())
        except ReceiptError as error:
            self.check(True, f"with one byte changed it is refused: {str(error)[:90]}")
        else:
            self.check(False, "with one byte changed it is refused")
        results = recompute_receipt(report)
        self.check(
            all(result.holds for result in results),
            f"recomputed here, what it says of signed chunks is right ({len(results)} statements)",
        )
        return report


# --- The two acts ------------------------------------------------------------------------------------


def show(swarm: Swarm, document: bytes, console: Console) -> list[str]:
    """Show a job done by an honest swarm, then the same job with a cheater.

    Writes ``receipt.json`` into the current directory.

    Args:
        swarm: at least three honest peers; it is left with a cheater more.
        document: the job file's content.
        console: where to.

    Returns:
        The claims that didn't hold.
    """
    demo = _Demo(console)
    demo.show_peers(swarm)
    honest, cheater = _honest_act(demo, swarm, document)
    cheated = _cheating_act(demo, swarm, document, honest, cheater)
    demo.title("6. Time by phase")
    console.print(_summary(honest, cheated))
    return demo.failures


def _honest_act(demo: _Demo, swarm: Swarm, document: bytes) -> tuple[_Run, SwarmPeer]:
    demo.title("2. A job: offered to all, sealed bids, an award, tokens, a commitment, verifiers by lot")
    run = demo.run_job(swarm, document)
    # The next act's cheater starts while we look at what came of this one.
    cheater = swarm.add(cheat=CHEAT)
    demo.title("3. What came of it")
    demo.say(run.text.strip(), style="italic")
    demo.console.print()
    demo.check(run.story.state == "verified", f"the job is verified, by {len(run.story.verifiers)} peers")
    demo.check_receipt(run.receipt, RECEIPT)
    demo.show_work(run, swarm.requester)
    executing_us = run.work[run.story.executor].executed_cpu_us
    shares = [run.work[peer].recomputed_cpu_us / max(1, executing_us) for peer in run.story.verifiers]
    demo.say(
        f"each verifier recomputed all {run.story.units} tokens in one pass, for "
        f"{' and '.join(f'{share:.3f}' for share in shares)} of the CPU time that executing took"
    )
    return run, cheater


def _cheating_act(demo: _Demo, swarm: Swarm, document: bytes, honest: _Run, cheater: SwarmPeer) -> _Run:
    demo.title(f"4. The same job, and a peer joins that cheats: {CHEAT}")
    demo.say(
        f"it runs 4-bit weights as if they were the promised model, and asks {cheater.price_micros} per token"
    )
    swarm.wait_until_acquainted()
    run = demo.run_job(swarm, document)
    demo.title("5. What came of that")
    caught = next(
        (e for e in run.events if e["event"] == "segment-verdict" and e["verdict"] == "fraud"), None
    )
    demo.check(_awarded(run.events)[:1] == [cheater.peer_id], "the cheater underbid the others and won")
    demo.check(caught is not None and caught["executor"] == cheater.peer_id, "it was convicted of fraud")
    folder = Path(tempfile.mkdtemp(prefix="p2p-node-demo-"))
    report = demo.check_receipt(run.receipt, folder / "receipt-cheat.json")
    if report is not None:
        demo.say(f"  caught by  {_check_that_caught(report, cheater)}", style="bold")
    demo.check(
        run.story.state == "verified" and run.story.executor != cheater.peer_id,
        f"the client got its answer from {short_peer(run.story.executor)}",
    )
    demo.check(run.text == honest.text, "the answer is the first run's, bit for bit")
    demo.check(run.work[cheater.peer_id].earned_micros == 0, "the cheater earned nothing")
    others = [peer for peer in swarm.peers if peer.is_running and peer is not cheater]
    knowing = _count_convicting(others, cheater)
    demo.check(knowing == len(others), f"{knowing} of {len(others)} peers hold the proof and shun it")
    demo.show_work(run, swarm.requester)
    return run


def _check_that_caught(report: ReceiptReport, cheater: SwarmPeer) -> str:
    """The check that convicted, from the receipt alone."""
    guilty = [c for c in report.claims if peer_id(c.peer) == cheater.peer_id and not c.is_right]
    for claim in guilty:
        chunk, signed = claim.digests[0]
        for other in report.claims:
            found = dict(other.digests).get(chunk)
            if other.task.units != claim.task.units or not other.is_right or found is None:
                continue
            if found == FALSE_UNITS:
                check = "re-sampling: the promised model and seed draw other tokens than it delivered"
            else:
                check = (
                    f"hidden states: it signed {signed.hex()[:12]}, recomputed they are {found.hex()[:12]}"
                )
            return f"chunk {chunk}, by {check}"
    return "no check: the receipt holds no conviction"


def _count_convicting(others: list[SwarmPeer], cheater: SwarmPeer) -> int:
    """How many of the others have convicted the cheater; gossip takes a moment."""
    deadline = time.monotonic() + 10
    while True:
        count = 0
        for peer in others:
            with peer.connect() as client:
                rows = {row["peer_id"]: row for row in client.peers()}
            count += bool(rows.get(cheater.peer_id, {}).get("convicted"))
        if count == len(others) or time.monotonic() > deadline:
            return count
        time.sleep(0.2)


def _work(swarm: Swarm) -> dict[str, _Work]:
    work = {}
    for peer in swarm.peers:
        if not peer.is_up or not peer.is_running:
            continue
        with peer.connect() as client:
            status = client.status()
        work[peer.peer_id] = _Work(
            status["executed_cpu_us"], status["recomputed_cpu_us"], status["earned_micros"]
        )
    return work


# --- Sums --------------------------------------------------------------------------------------------


def _awarded(events: Iterable[Mapping[str, Any]]) -> list[str]:
    return [str(event["peer"]) for event in events if event["event"] == "awarded"]


def _phases(run: _Run) -> dict[str, int]:
    """Milliseconds by phase; what a failed attempt took is a phase of its own."""
    at: dict[str, int] = {}
    phases: dict[str, int] = {}
    for event in run.events:
        name, at_ms = event["event"], event["at_ms"]
        match name:
            case "offered" | "awarded" | "segment-verdict":
                at[name] = at_ms
            case "output":
                at.setdefault("first token", at_ms)
            case "committed" if event["final"]:
                at[name] = at_ms
            case "attempt-failed":
                phases["lost to a peer that failed"] = at_ms - at["awarded"]
                at.pop("first token", None)
            case "finished":
                at[name] = at_ms
        if name == "awarded":
            phases.setdefault("bidding", at_ms - at["offered"])
    steps = ("awarded", "first token", "committed", "segment-verdict", "finished")
    names = ("award to first token", "generation", "verification", "payment and receipt")
    for name, begin, end in zip(names, steps, steps[1:], strict=False):
        if begin in at and end in at:
            phases[name] = at[end] - at[begin]
    phases["altogether"] = at["finished"] - at["offered"]
    return phases


def _summary(honest: _Run, cheated: _Run) -> Table:
    table = _table("phase", "all honest", "with a cheater", numeric=1)
    columns = [_phases(honest), _phases(cheated)]
    for name in sorted(columns[0].keys() | columns[1].keys(), key=list(_PHASES).index):
        table.add_row(name, *(duration_text(phases[name]) if name in phases else "-" for phases in columns))
    return table


_PHASES = (
    "bidding",
    "lost to a peer that failed",
    "award to first token",
    "generation",
    "verification",
    "payment and receipt",
    "altogether",
)


def _milliseconds(duration_us: int) -> str:
    return f"{duration_us / 1000:.0f} ms" if duration_us else "-"


def _table(*columns: str, numeric: int) -> Table:
    """A table whose columns from the one numbered ``numeric`` on hold numbers."""
    table = Table(box=None, header_style="bold", padding=(0, 2))
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number >= numeric else "left")
    return table


# --- Start -------------------------------------------------------------------------------------------


def main() -> int:
    """Run the demonstration; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m p2p_node.demo", description="Show a swarm at work.")
    parser.add_argument("--peers", type=int, default=5, help="honest peers, the requester included")
    parser.add_argument("--seed", type=int, help="makes the peers' identities the same each time")
    parser.add_argument("--job", type=Path, default=JOB, help="the job file")
    arguments = parser.parse_args()
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 110
    demo = _Demo(console)
    started = time.monotonic()
    try:
        document = arguments.job.read_bytes()
        demo.title(f"1. {arguments.peers} peers on this machine, each a process of its own, over libp2p")
        with running_swarm(arguments.peers, seed=arguments.seed, on_event=demo.on_event) as swarm:
            demo.failures += show(swarm, document, console)
        demo.say(f"\nall {len(swarm.peers)} peers are stopped; it took {time.monotonic() - started:.0f} s")
    except (UserError, OSError) as error:
        console.print(Text(f"error: {error}", style="bold red"))
        return 1
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    demo.say(f"the honest run's receipt is in {RECEIPT}; check it: p2p-node job verify {RECEIPT} --recompute")
    if demo.failures:
        demo.say(f"{len(demo.failures)} claims failed: {'; '.join(demo.failures)}", style="bold red")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
