"""What a profile's name tells a worker: in which arithmetic it computes, and what a finding is of.

The exact profiles and ``homogeneous/`` with a class of machines behind it state digests, ``native`` states
fingerprints. In ``native-reference`` the exact run states fingerprints too: it judges the native ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from workloads.errors import InputRefused
from workloads.exact.quantise import EXACT14, EXACT21, Precision
from workloads.numeric_class import numeric_class

__all__ = ["HOMOGENEOUS", "NATIVE", "REFERENCE", "Numerics", "numerics_of"]

HOMOGENEOUS, NATIVE, REFERENCE = "homogeneous", "native", "native-reference"


@dataclass(frozen=True, slots=True)
class Numerics:
    """See the module.

    Args:
        precision: of an exact run; None in native kernels.
        has_fingerprints: whether findings are fingerprints.
        is_reference: whether it judges native findings.
    """

    precision: Precision | None
    has_fingerprints: bool = False
    is_reference: bool = False

    @property
    def has_inner_states(self) -> bool:
        """Whether findings cover `workloads.chunkwise.Chunk.states`."""
        return self.precision is None or self.has_fingerprints


_NUMERICS = {
    "exact14": Numerics(EXACT14),
    "exact21": Numerics(EXACT21),
    HOMOGENEOUS: Numerics(None),
    NATIVE: Numerics(None, has_fingerprints=True),
    REFERENCE: Numerics(EXACT21, has_fingerprints=True, is_reference=True),
}


def numerics_of(profile: str, offered: tuple[str, ...]) -> Numerics:
    """What a profile stands for.

    Args:
        profile: as a worker is told it.
        offered: those that the kind of work has.

    Raises:
        InputRefused: it isn't one of them, or names another class of machines than this one's.
    """
    name, _, machines = profile.partition("/")
    if (NATIVE if name == REFERENCE else name) not in offered or (machines and name != HOMOGENEOUS):
        raise InputRefused(f"profile {profile!r} must be one of {offered}")
    if name == HOMOGENEOUS and machines != numeric_class():
        raise InputRefused(f"class {machines!r} isn't this machine's, {numeric_class()!r}")
    return _NUMERICS[name]
