"""What a computation found of a chunk, and when two findings agree, by the numerics profile.

In the exact profiles, and inside one class of machines, a finding is a digest and must be equal.
Native kernels differ from machine to machine, so there a finding is a *fingerprint*: some integers
for each output unit, of inner values that the units don't give away. Commitments bind its digest, as
any other chunk's; openings and reveals carry the fingerprint itself, so that others can compare.

Native findings that differ convict nobody: they call for the exact re-run, and only whoever is
farther from it than the model's calibrated bound made a false statement. The bounds are in the terms,
since both sides and every judge must mean the same.
"""

from __future__ import annotations

import struct

from protocols.digest import tagged
from protocols.errors import Rejected
from protocols.messages import Award
from protocols.units import FALSE_UNITS

__all__ = [
    "CONVICTING_PROFILES",
    "EXACT_PROFILES",
    "HOMOGENEOUS",
    "NATIVE",
    "PROFILES",
    "agree",
    "as_stated",
    "digest_of",
    "distance",
    "is_false",
    "judging_numerics",
    "numerics",
    "stated",
]

EXACT_PROFILES = ("exact14", "exact21")
"""Equal bits on every machine."""
HOMOGENEOUS = "homogeneous"
"""Native kernels, equal bits inside a class of machines that the terms name."""
NATIVE = "native"
"""Native kernels, compared with a tolerance."""
PROFILES = (*EXACT_PROFILES, HOMOGENEOUS, NATIVE)
CONVICTING_PROFILES = PROFILES
"""Profiles whose false statements can be proved: where bits may differ, by the exact re-run."""

_REFERENCE = "native-reference"
_VALUE_BYTES = 4
_VALUES_PER_UNIT = 4
_FAR = 2**63


def numerics(terms: Award) -> str:
    """What a worker is told to compute in, to execute or to verify."""
    return f"{HOMOGENEOUS}/{terms.numeric_class}" if terms.profile == HOMOGENEOUS else terms.profile


def judging_numerics(terms: Award) -> str:
    """What a worker is told to compute in, to settle a dispute."""
    return _REFERENCE if terms.profile == NATIVE else numerics(terms)


def digest_of(profile: str, finding: bytes) -> bytes:
    """The 32 bytes that a commitment or a blind verdict binds."""
    if profile != NATIVE or finding == FALSE_UNITS:
        return finding
    return tagged("p2p-node/native-chunk/1", finding)


def stated(profile: str, finding: bytes) -> tuple[bytes, bytes]:
    """A finding as a statement carries it: digest and fingerprint, which is empty where there is none."""
    has_fingerprint = profile == NATIVE and finding != FALSE_UNITS
    return digest_of(profile, finding), finding if has_fingerprint else b""


def as_stated(profile: str, digest: bytes, fingerprint: bytes) -> bytes:
    """The finding that a statement states.

    Raises:
        Rejected: a fingerprint that the digest isn't of, or one where there should be none.
    """
    finding = fingerprint or digest
    if stated(profile, finding) != (digest, fingerprint):
        raise Rejected(f"the fingerprint isn't what the {profile} digest is of")
    return finding


def agree(terms: Award, one: bytes, other: bytes) -> bool:
    """Whether two findings of one chunk support each other."""
    if terms.profile != NATIVE or FALSE_UNITS in (one, other):
        return one == other
    return distance(one, other) <= terms.tolerance.agree_steps


def is_false(terms: Award, claimed: bytes, truth: bytes) -> bool:
    """Whether a re-run in `judging_numerics` shows that a finding is false, not merely different.

    In the native profile a verifier that found the units false is never shown wrong: how far a unit
    may be from its draw differs from machine to machine.
    """
    if terms.profile != NATIVE:
        return claimed != truth
    if claimed == FALSE_UNITS:
        return False
    return truth == FALSE_UNITS or distance(claimed, truth) > terms.tolerance.convict_steps


def distance(one: bytes, other: bytes) -> int:
    """How far two fingerprints are apart: the largest mean difference of a unit's values, in steps.

    Fingerprints are 4 little-endian 32-bit integers with sign for each output unit. Those of
    different lengths, or that are no whole number of units, are as far apart as can be.
    """
    size = _VALUE_BYTES * _VALUES_PER_UNIT
    if len(one) != len(other) or not one or len(one) % size:
        return _FAR
    pairs = zip(struct.iter_unpack("<4i", one), struct.iter_unpack("<4i", other), strict=True)
    farthest: int = max(sum(abs(a - b) for a, b in zip(*pair, strict=True)) for pair in pairs)
    return farthest // _VALUES_PER_UNIT
