"""What believing costs: draws, trees, receipts and fraud proofs.

python -m benchmarks.verification [--quick]

Baselines are measured in the same run: an Ed25519 signature for a draw, a bare hash for a tree's node,
and checking its signatures alone for a receipt. Times are medians over repeated batches; on a machine
that does other things take the ratios.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import msgspec
from blake3 import blake3

from benchmarks.table import machine_line, print_table
from p2p_node.core.keyring import Keyring, RealCrypto
from p2p_node.core.request import JobState
from p2p_node.core.requester import Job
from p2p_node.receipts import render
from p2p_node.sim.attacks import Setting, fight
from p2p_node.sim.scenario import job_request
from p2p_node.sim.world import NETWORK
from protocols import merkle
from protocols.digest import tagged
from protocols.envelope import open_envelope
from protocols.errors import PeerFault
from protocols.messages import Member
from verification.electorate import Electorate, verify_membership
from verification.receipt import check_receipt
from verification.sortition import alpha, drawn_chunks

__all__ = ["main", "rate", "signatures_in"]


def rate(work: Callable[[], object], *, batches: int, each: int) -> float:
    """Median seconds of one call, over ``batches`` of ``each`` calls."""
    times = []
    for _ in range(batches):
        started = time.perf_counter()
        for _ in range(each):
            work()
        times.append((time.perf_counter() - started) / each)
    return median(times)


def draw_rows(batches: int) -> list[list[str]]:
    """VRF proofs beside Ed25519 signatures."""
    keys, crypto = Keyring(bytes(range(32))), RealCrypto()
    message = alpha("bench", bytes(32))
    proof, signature = keys.vrf_prove(message), keys.sign(message)
    beta = crypto.vrf_output(keys.public, message, proof) or b""
    sign = rate(lambda: keys.sign(message), batches=batches, each=200)
    verify = rate(lambda: crypto.verify(keys.public, message, signature), batches=batches, each=100)
    prove = rate(lambda: keys.vrf_prove(message), batches=batches, each=10)
    output = rate(lambda: crypto.vrf_output(keys.public, message, proof), batches=batches, each=10)
    chunks = rate(lambda: drawn_chunks(beta, chunks=256, samples=16), batches=batches, each=50)
    return [
        ["Ed25519 sign", f"{1 / sign:,.0f}", f"{1e6 * sign:.0f}", "1.0x"],
        ["Ed25519 verify", f"{1 / verify:,.0f}", f"{1e6 * verify:.0f}", f"{verify / sign:.1f}x"],
        ["VRF prove", f"{1 / prove:,.0f}", f"{1e6 * prove:.0f}", f"{prove / sign:.1f}x"],
        [
            "VRF verify, and output",
            f"{1 / output:,.0f}",
            f"{1e6 * output:.0f}",
            f"{output / verify:.1f}x of verify",
        ],
        ["draw 16 of 256 chunks", f"{1 / chunks:,.0f}", f"{1e6 * chunks:.0f}", f"{chunks / sign:.1f}x"],
    ]


def tree_rows(sizes: Sequence[int], batches: int) -> list[list[str]]:
    """Merkle roots, proofs and checks, and electorates, beside hashing as many nodes."""
    rows = []
    for size in sizes:
        leaves = [tagged("bench", number.to_bytes(8, "little")) for number in range(size)]
        proof = merkle.prove(leaves, size // 2)
        root = merkle.root(leaves)
        members = [Member(leaf, 1 + number % 8) for number, leaf in enumerate(leaves)]
        electorate = Electorate(members)
        belongs = electorate.prove(leaves[size // 2])

        def hash_all(leaves: list[bytes] = leaves) -> None:
            for leaf in leaves:
                blake3(leaf + leaf).digest()

        def check_member(e: Electorate = electorate, p=belongs, key: bytes = leaves[size // 2]) -> bool:  # type: ignore[no-untyped-def]
            return verify_membership(e.root, total_weight=e.total_weight, count=e.count, key=key, proof=p)

        bare = rate(hash_all, batches=batches, each=3)
        grow = rate(lambda leaves=leaves: merkle.root(leaves), batches=batches, each=3)  # type: ignore[misc]
        check = rate(
            lambda r=root, n=size, leaf=leaves[size // 2], p=proof: merkle.verify(  # type: ignore[misc]
                r, count=n, index=n // 2, leaf=leaf, proof=p
            ),
            batches=batches,
            each=20,
        )
        elect = rate(lambda m=members: Electorate(m), batches=batches, each=1)  # type: ignore[misc]
        member = rate(check_member, batches=batches, each=20)
        rows.append(
            [
                str(size),
                f"{size / grow:,.0f}",
                f"{grow / bare:.1f}x",
                str(len(proof)),
                f"{1e6 * check:.0f}",
                f"{1e3 * elect:.1f}",
                f"{1e6 * member:.0f}",
            ]
        )
    return rows


def receipt_of(chunks: int, verifiers: int, *, kind: str = "", seed: int = 1) -> Job:
    """A finished job with real keys and draws; with a cheater first if ``kind`` names one."""
    request = replace(
        job_request(seed, units=32 * chunks), expected_verifiers_milli=1_000 * verifiers, total_ms=600_000
    )
    battle = fight(Setting(kind=kind, honest=10, real_keys=True), seed=seed, requests=[request])
    (job,) = battle.jobs
    if job.state is not JobState.VERIFIED or job.receipt is None:
        raise RuntimeError(f"the job ended {job.state.value}: {job.reason}")
    return job


def signatures_in(value: object) -> list[bytes]:
    """Every signed envelope inside a receipt, however deep."""
    found: list[bytes] = []
    if isinstance(value, bytes):
        try:
            message = open_envelope(value, network=NETWORK, crypto=RealCrypto(), bytes_max=1 << 26)
        except PeerFault:
            return found
        return [value, *signatures_in(message.body)]
    if isinstance(value, msgspec.Struct):
        value = tuple(getattr(value, name) for name in value.__struct_fields__)
    if isinstance(value, tuple):
        for part in value:
            found += signatures_in(part)
    return found


def receipt_rows(cases: Sequence[tuple[int, int, str]], batches: int) -> list[list[str]]:
    """Size of a receipt, and what checking it offline takes."""
    crypto = RealCrypto()
    rows = []
    for chunks, verifiers, kind in cases:
        job = receipt_of(chunks, verifiers, kind=kind)
        assert job.receipt is not None
        raw = job.receipt.raw
        envelopes = signatures_in(raw)

        def check_all(raw: bytes = raw) -> object:
            return check_receipt(raw, network=NETWORK, crypto=crypto)

        def open_all(envelopes: list[bytes] = envelopes) -> None:
            for envelope in envelopes:
                open_envelope(envelope, network=NETWORK, crypto=crypto, bytes_max=1 << 26)

        check = rate(check_all, batches=batches, each=1)
        signatures = rate(open_all, batches=batches, each=1)
        draws = sum(len(round_.entries) for a in job.attempts for round_ in a.rounds.values())
        rows.append(
            [
                str(chunks),
                str(verifiers),
                kind or "none",
                str(draws),
                str(len(envelopes)),
                f"{len(raw) / 1024:.1f}",
                f"{len(render(raw, network=NETWORK, crypto=crypto)) / 1024:.1f}",
                f"{1e3 * check:.1f}",
                f"{check / signatures:.1f}x",
            ]
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.verification",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="fewer and smaller samples")
    quick = parser.parse_args(argv).quick
    batches = 3 if quick else 15
    print(machine_line(), flush=True)
    print_table("Draws", ["operation", "a second", "us", "of a signature"], draw_rows(batches))
    print_table(
        "Trees of n leaves: commitments (Merkle) and electorates (Merkle with weights)",
        ["n", "leaves/s", "of hashing", "proof", "check us", "electorate ms", "member us"],
        tree_rows((16, 256) if quick else (16, 256, 4_096), batches),
    )
    cases = [(4, 2, ""), (16, 2, "")] if quick else [(4, 2, ""), (16, 2, ""), (64, 2, ""), (64, 8, "")]
    cases.append((16, 2, "quantized-weights"))
    print_table(
        "Receipts of one job, checked offline without the model",
        [
            "chunks",
            "verifiers",
            "cheat",
            "draws",
            "signatures",
            "KiB",
            "JSON KiB",
            "check ms",
            "of signatures",
        ],
        receipt_rows(cases, batches),
    )


if __name__ == "__main__":
    main()
