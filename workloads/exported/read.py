"""Reads a client's files for ``program.run``: ``python -m workloads.exported.read``.

A process of its own, because it imports torch and because the files may be anybody's. It takes one JSON
request on stdin and gives its answer on stdout: for ``pack``, in MessagePack, a job's input and, where it is
too large to lie in there, the program's content; for ``check`` a description in JSON. What is refused ends it
with status 2 and the reason, one line of text, on stdout.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from protocols.codec import encode
from workloads import lockdown
from workloads.errors import WorkloadRefused

__all__ = ["MEMORY_BYTES_MAX", "REFUSED", "main"]

MEMORY_BYTES_MAX = 8 << 30
REFUSED = 2


def _pack(request: dict[str, Any]) -> bytes:
    from workloads.exported.input import encode_input
    from workloads.exported.source import Source, load_program, packed, run_input

    sources: dict[str, Source] = {
        name: Path(given["file"]) if "file" in given else given["values"]
        for name, given in request["inputs"].items()
    }
    template = load_program(Path(request["file"]), request["shapes"])
    job, kept = packed(run_input(template, sources, request["format"]))
    return encode((encode_input(job), kept))


def _check(request: dict[str, Any]) -> bytes:
    from workloads.exported.check import described
    from workloads.exported.source import load_program

    return json.dumps(described(load_program(Path(request["file"]), request["shapes"]))).encode()


def main() -> None:
    """Answer the request on stdin."""
    for variable in lockdown.THREAD_VARIABLES:
        os.environ[variable] = "1"
    for kind, most in ((resource.RLIMIT_DATA, MEMORY_BYTES_MAX), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (most, most))
    request = json.loads(sys.stdin.buffer.read())
    try:
        answer = {"pack": _pack, "check": _check}[request["do"]](request)
    except WorkloadRefused as error:
        sys.stdout.write(str(error))
        raise SystemExit(REFUSED) from None
    except MemoryError:
        sys.stdout.write(f"reading it takes more than {MEMORY_BYTES_MAX} bytes of memory")
        raise SystemExit(REFUSED) from None
    sys.stdout.buffer.write(answer)


if __name__ == "__main__":
    main()
