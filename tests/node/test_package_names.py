"""Nobody else may own our package names."""

from __future__ import annotations

import pytest

from p2p_node.package_names import ForeignPackage, refuse_foreign_packages


def test_this_environment_is_fine() -> None:
    refuse_foreign_packages()


def test_our_own_distribution_is_no_stranger() -> None:
    refuse_foreign_packages({"protocols": ["p2p-node", "p2p-node"], "numpy": ["numpy"]})


@pytest.mark.parametrize("package", ["p2p_node", "protocols", "verification", "workloads"])
def test_another_owner_is_named(package: str) -> None:
    with pytest.raises(
        ForeignPackage, match=f"pyverify installs a package named {package}.*uninstall pyverify"
    ):
        refuse_foreign_packages({package: ["p2p-node", "pyverify"]})
