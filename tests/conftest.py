"""What holds for all tests: the same examples every time, and no test that fails on a slow machine."""

from __future__ import annotations

import os

from hypothesis import settings

# Before torch is imported: peers and tests share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "deterministic"))
