"""One target under atheris, in this process.

python -m tests.fuzzing.one TARGET [libFuzzer's flags] CORPUS...
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import atheris

_OURS = ["protocols", "verification", "p2p_node", "workloads"]


def main() -> None:
    """Fuzz until libFuzzer's flags say enough."""
    name, flags = sys.argv[1], sys.argv[2:]
    with atheris.instrument_imports(include=_OURS):
        from tests.fuzzing.targets import TARGETS

    target = TARGETS[name]
    if "-merge=1" not in flags:
        corpus = Path(next(flag for flag in flags if not flag.startswith("-")))
        for number, seed in enumerate(target.seeds()):
            (corpus / f"seed-{number}").write_bytes(seed)

    def run(data: bytes) -> None:
        with contextlib.suppress(target.refusals):
            target.run(data)

    atheris.Setup([sys.argv[0], f"-max_len={target.bytes_max}", *flags], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
