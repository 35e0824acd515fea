"""What a process gives up before it runs a stranger's work: applied by layers, each reported.

A layer that the kernel doesn't have, or doesn't allow us, is said so and never skipped in silence. Applied
when everything is imported and before any thread is started: Landlock and seccomp bind the thread that asks
for them and those it starts.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from workloads.sandbox import landlock, limits, namespaces, privileges, seccomp
from workloads.sandbox.layers import LAYERS, LayerReport

__all__ = ["LAYERS", "LayerReport", "Policy", "lock_down"]


@dataclass(frozen=True, slots=True)
class Policy:
    """What a locked-down process may still do.

    Args:
        memory_bytes_max: private memory.
        readable: directories and files: what Python and torch need, models, blobs.
        devices: device files of accelerators.
        layers: those to apply; fewer only to measure what each costs.
    """

    memory_bytes_max: int
    readable: tuple[Path, ...] = ()
    devices: tuple[Path, ...] = ()
    layers: Collection[str] = LAYERS


def lock_down(policy: Policy, entered: LayerReport) -> tuple[LayerReport, ...]:
    """Apply every layer to this process, which has one thread. There is no way back.

    Args:
        policy: what stays allowed.
        entered: what `namespaces.enter` said of this process.
    """
    wanted = policy.layers
    reports = []
    if "limits" in wanted:
        reports.append(limits.apply(policy.memory_bytes_max, has_own_users=namespaces.has_own_users(entered)))
    reports.append(entered)
    if "privileges" in wanted:
        reports.append(privileges.drop())
    if "landlock" in wanted:
        reports.append(landlock.confine(policy.readable, policy.devices))
    if "seccomp" in wanted:
        reports.append(seccomp.allow_only_computing(has_accelerator=bool(policy.devices)))
    return tuple(reports)
