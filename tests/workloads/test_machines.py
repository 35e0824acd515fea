"""The exact profiles give one set of bits whatever the thread count and the instruction set.

What is compared is the reference run of `workloads.llama.selfcheck`, whose bits are pinned: prefill, batch
and decode of a small model.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from workloads.errors import NumericsRefused
from workloads.llama import selfcheck

SCRIPT = """
import sys, torch
torch.set_num_threads(int(sys.argv[1]))
from workloads.llama.selfcheck import reference_digests
print(torch.get_num_threads(), *reference_digests().values())
"""
OLD_NUMPY = "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL X86_V3 X86_V4"
MACHINES = {
    "two threads": (2, {}),
    "no vector extensions": (
        1,
        {
            "ATEN_CPU_CAPABILITY": "default",
            "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
            "ONEDNN_MAX_CPU_ISA": "SSE41",
            "NPY_DISABLE_CPU_FEATURES": OLD_NUMPY,
        },
    ),
    "AVX2": (2, {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}),
    "AVX-512": (1, {"ATEN_CPU_CAPABILITY": "avx512", "MKL_CBWR": "COMPATIBLE"}),
}


def test_this_machine_reproduces_the_pinned_bits() -> None:
    selfcheck.check_arithmetic()


@pytest.mark.parametrize("name", MACHINES)
def test_other_machines_do_too(name: str) -> None:
    threads, variables = MACHINES[name]
    environment = {"PATH": os.environ["PATH"], "PYTHONWARNINGS": "ignore", **variables}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(threads)],
        env=environment,
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
    )
    assert result.stdout.split() == [str(threads), *selfcheck.EXPECTED.values()], result.stderr


def test_a_machine_that_does_not_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(selfcheck.EXPECTED, "exact21", "00" * 32)
    with pytest.raises(NumericsRefused, match="does not reproduce exact21"):
        selfcheck.check_arithmetic()
