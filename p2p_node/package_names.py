"""The four top-level package names are generic; another distribution may claim one of them.

Two distributions that install the same directory overwrite each other's files, and then what
runs is a mixture. A node that can't trust its own code must not start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata

from p2p_node.errors import UserError

__all__ = ["PACKAGES", "ForeignPackage", "refuse_foreign_packages"]

DISTRIBUTION = "p2p-node"
PACKAGES = ("p2p_node", "protocols", "verification", "workloads")


class ForeignPackage(UserError):
    """Another installed distribution owns one of our package names."""


def refuse_foreign_packages(owners: Mapping[str, Sequence[str]] | None = None) -> None:
    """Check that no other distribution in this environment installs one of our packages.

    Args:
        owners: distributions by top-level package; None asks the environment.

    Raises:
        ForeignPackage: another one does.
    """
    if owners is None:
        owners = metadata.packages_distributions()
    for package in PACKAGES:
        others = sorted({name for name in owners.get(package, ()) if name != DISTRIBUTION})
        if others:
            raise ForeignPackage(
                f"the distribution {others[0]} installs a package named {package}, which is also ours, so "
                f"one may have overwritten the other; install p2p-node in an environment of its own, or run: "
                f"pip uninstall {others[0]} && pip install --force-reinstall --no-deps {DISTRIBUTION}"
            )
