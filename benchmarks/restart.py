"""How long a node takes to be up again with a store of many receipts, against one with an empty store.

The store holds a job's record, its receipt, a voucher that the node signed and one that it was paid by, so
many times over; and as many contracts, lanes and obligations as may be open at once.

python -m benchmarks.restart [--quick] [--receipts N]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.table import machine_line, print_table
from p2p_node import keystore
from p2p_node.core.keyring import Keyring
from p2p_node.datadir import DataDir
from p2p_node.jobrecord import CREATED_BYTES
from p2p_node.jobs import RECORDS_MAX
from p2p_node.store import Store
from protocols.digest import tagged
from protocols.effects import Persist
from protocols.envelope import seal
from protocols.messages import Voucher

__all__ = ["fill", "main"]

RECEIPTS = 100_000
RECEIPT_BYTES = 6_000
BATCH = 1_000
NETWORK = "restart"
PATIENCE_S = 240


def fill(place: DataDir, seed: bytes, receipts: int) -> None:
    """Fill a node's store as so many jobs would have."""
    own, other = Keyring(seed), Keyring(tagged("restart-other"))
    luck = random.Random(1)
    filler = luck.randbytes(RECEIPT_BYTES)
    spec = {"task": {"workload": "lm.generate", "model": "kjv-2m", "prompt": "And it came to pass"}}
    with Store.open(place.store) as store:
        changes: list[Persist] = []
        for number in range(receipts):
            job = tagged("restart-job", number.to_bytes(8, "big"))
            created_ms = 1_700_000_000_000 + number
            record = {"name": "job", "created_ms": created_ms, "spec": spec, "reason": ""}
            record |= {"state": "verified", "units": list(range(64)), "text": "a" * 200, "finished_ms": 1}
            changes.append(Persist("jobs", job, json.dumps(record).encode()))
            if number >= receipts - RECORDS_MAX:
                newest = created_ms.to_bytes(CREATED_BYTES, "big") + job
                changes.append(Persist("recent", newest, b""))
            changes.append(Persist("receipts", job, job + filler))
            for signer, payee in ((own, other), (other, own)):
                award = tagged("restart-award", job, payee.public)
                body = Voucher(award, payee.public, 1, 6_400, 0, 1_700_000_000_000, bytes(32))
                voucher = seal(body, network=NETWORK, key=signer)
                changes.append(Persist("vouchers", award + payee.public, voucher.raw))
            if len(changes) >= BATCH or number == receipts - 1:
                store.apply(changes)
                changes = []


@contextmanager
def _running(place: DataDir, measured: Path) -> Iterator[float]:
    """A node on a directory; yields how many seconds it took until its API answered."""
    options = (
        "--no-mdns",
        "--log-format",
        "json",
        "--listen",
        "/ip4/127.0.0.1/tcp/0",
        "--api",
        "127.0.0.1:0",
        "--network",
        NETWORK,
    )
    command = [sys.executable, "-I", "-m", "p2p_node", "start", "--datadir", str(place.path), *options]
    started = time.monotonic()
    with (place.path / "node.log").open("ab") as log:
        process = subprocess.Popen([*command, "--measured", str(measured)], stdout=log, stderr=log)
    try:
        while not place.api.exists():
            if process.poll() is not None or time.monotonic() - started > PATIENCE_S:
                raise SystemExit(f"the node isn't up:\n{(place.path / 'node.log').read_text()[-2_000:]}")
            time.sleep(0.01)
        yield time.monotonic() - started
        while b"node is up" not in (place.path / "node.log").read_bytes():
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
        place.api.unlink(missing_ok=True)


def _steps(place: DataDir) -> Counter[str]:
    """What the newest start says of its steps, in milliseconds."""
    lines = (place.path / "node.log").read_text().splitlines()
    told = [json.loads(line)["steps_ms"] for line in lines if '"node is up"' in line]
    return Counter(told[-1])


def main(argv: Sequence[str] | None = None) -> int:
    """Fill, start, and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.restart", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the receipts")
    parser.add_argument("--receipts", type=int, default=RECEIPTS, metavar="N")
    arguments = parser.parse_args(argv)
    receipts = arguments.receipts // (20 if arguments.quick else 1)
    with tempfile.TemporaryDirectory(prefix="p2p-node-restart-") as folder:
        measured = Path(folder) / "measured.json"
        done = subprocess.run(
            [sys.executable, "-I", "-m", "workloads.measure", "--disk", folder],
            capture_output=True,
            check=True,
        )
        measured.write_bytes(done.stdout)
        times: dict[int, list[float]] = {0: [], receipts: []}
        steps: dict[int, list[Counter[str]]] = {count: [] for count in times}
        sizes: dict[int, int] = {}
        places = {}
        for count in times:
            place = places[count] = DataDir.open(Path(folder) / f"node-{count}")
            seed = tagged("restart-seed", count.to_bytes(8, "big"))
            keystore.create(place.keystore, None, seed=seed)
            fill(place, seed, count)
        # The first start measures the models, and warms the disk's cache for both.
        for run in range(4):
            for count, place in places.items():
                with _running(place, measured) as seconds:
                    if run:
                        times[count].append(seconds)
                if run:
                    steps[count].append(_steps(place))
                (place.path / "node.log").unlink()
                sizes[count] = os.stat(place.store).st_size
        best = min(times[0])
        rows = [
            [
                f"{count:,}",
                f"{sizes[count] / 2**20:,.0f} MiB",
                f"{min(taken):.2f} s",
                f"{max(taken):.2f} s",
                f"{min(taken) / best:.2f}",
            ]
            for count, taken in times.items()
        ]
        quickest = {
            count: min(told, key=lambda each: sum(each.values()), default=Counter())
            for count, told in steps.items()
        }
    head = ["receipts", "store", "up after, best", "worst of 3", "ratio"]
    print_table("A node that starts again", head, rows)
    step_rows = [
        [name, *(str(quickest[count][name]) for count in times)] for name in quickest[receipts] | quickest[0]
    ]
    print_table("Its steps, in milliseconds", ["step", *(f"{count:,}" for count in times)], step_rows)
    print(machine_line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
