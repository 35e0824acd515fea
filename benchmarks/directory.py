"""What it takes to find a provider among strangers, as the directory grows and a third of it is hostile.

python -m benchmarks.directory [--quick] [--peers N …]

The machines that run for real, in memory, each with the table of a peer that has been there long. Providers
publish a record each, and peers that keep none of it look for it. The baseline is the first row.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence

from benchmarks.table import percentile, print_table
from p2p_node.sim.directories import DirectoryPeer, DirectoryWorld, Manner
from protocols.places import blob_key

__all__ = ["main", "measure"]

SIZES = (100, 1_000, 10_000)
QUICK_SIZES = (50, 100)
MANNERS: tuple[tuple[Manner, float], ...] = (("honest", 0.0), ("silent", 1 / 3), ("lying", 1 / 3))
KEYS = 20
PUBLISH_MS = 120_000
PATIENCE_MS = 120_000


def measure(peers: int, manner: Manner, share: float, *, keys: int = KEYS, seed: int = 1) -> dict[str, float]:
    """Hops, questions, messages, time and share found, of as many searches as ``keys``."""
    world, luck = DirectoryWorld(seed), random.Random(seed)
    for _ in range(peers):
        world.add(manner if luck.random() < share else "honest")
    world.furnish()
    honest = [peer for peer in world.peers if peer.manner == "honest"]
    providers = luck.sample(honest, keys)
    for number, provider in enumerate(providers):
        world.provide(provider, blob_key(bytes([number])))
    world.run(PUBLISH_MS)
    published = world.messages / keys
    rows = [_search(world, luck, honest, blob_key(bytes([n])), p) for n, p in enumerate(providers)]
    hops = [float(row[0]) for row in rows if row[0]]
    return {
        "found": sum(row[0] > 0 for row in rows) / keys,
        "hops": sum(hops) / max(1, len(hops)),
        "questions": sum(row[1] for row in rows) / keys,
        "ms": percentile([row[2] for row in rows], 50),
        "publish": published,
        "table": sum(len(peer.directory.table) for peer in honest) / len(honest),
    }


def _search(
    world: DirectoryWorld,
    luck: random.Random,
    honest: Sequence[DirectoryPeer],
    key: bytes,
    provider: DirectoryPeer,
) -> tuple[int, int, int]:
    others = [
        peer for peer in honest if not peer.directory.store.get(key, world.now_ms) and peer is not provider
    ]
    began_ms = world.now_ms
    search = world.search(luck.choice(others), key, wanted=4)
    world.run(PATIENCE_MS, until=lambda: search.is_over)
    is_found = provider.key in {record.signer for record in search.found}
    return search.lookup.hops if is_found else 0, search.lookup.questions, world.now_ms - began_ms


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.directory", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two small directories")
    parser.add_argument("--peers", type=int, nargs="+", help="sizes of the directories")
    arguments = parser.parse_args(argv)
    rows: list[list[str]] = []
    first: dict[str, float] = {}
    for peers in arguments.peers or (QUICK_SIZES if arguments.quick else SIZES):
        for manner, share in MANNERS:
            started = time.perf_counter()
            values = measure(peers, manner, share, keys=5 if arguments.quick else KEYS)
            first = first or values
            cells = [f"{value:,.1f} ({value / (first[name] or 1):.2f})" for name, value in values.items()]
            name = f"{peers} peers" + (f", a third {manner}" if share else "")
            rows.append([name, *cells, f"{time.perf_counter() - started:.0f}"])
    print_table(
        "Finding one provider's record (in brackets: over the first row)",
        ["directory", "share found", "hops", "questions", "p50 ms", "messages to publish", "table", "real s"],
        rows,
    )


if __name__ == "__main__":
    main()
