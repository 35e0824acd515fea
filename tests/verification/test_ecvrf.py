"""ECVRF against the RFC's vectors, an independent group law, and bytes made to break it."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

from verification import ecvrf

ORDER = 2**252 + 27742317777372353535851937790883648493
FIELD = 2**255 - 19


class Vector(NamedTuple):
    seed: str
    public_key: str
    alpha: str
    proof: str
    beta: str


# RFC 9381 appendix B.3, examples 16 to 18.
VECTORS = [
    Vector(
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "8657106690b5526245a92b003bb079ccd1a92130477671f6fc01ad16f26f723f26f8a57ccaed74ee1b190bed1f479d97"
        "27d2d0f9b005a6e456a35d4fb0daab1268a1b0db10836d9826a528ca76567805",
        "90cf1df3b703cce59e2a35b925d411164068269d7b2d29f3301c03dd757876ff"
        "66b71dda49d2de59d03450451af026798e8f81cd2e333de5cdf4f3e140fdd8ae",
    ),
    Vector(
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "f3141cd382dc42909d19ec5110469e4feae18300e94f304590abdced48aed5933bf0864a62558b3ed7f2fea45c92a465"
        "301b3bbf5e3e54ddf2d935be3b67926da3ef39226bbc355bdc9850112c8f4b02",
        "eb4440665d3891d668e7e0fcaf587f1b4bd7fbfe99d0eb2211ccec90496310eb"
        "5e33821bc613efb94db5e5b54c70a848a0bef4553a41befc57663b56373a5031",
    ),
    Vector(
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "9bc0f79119cc5604bf02d23b4caede71393cedfbb191434dd016d30177ccbf8096bb474e53895c362d8628ee9f9ea3c0"
        "e52c7a5c691b6c18c9979866568add7a2d41b00b05081ed0f58ee5e31b3a970e",
        "645427e5d00c62a23fb703732fa5d892940935942101e456ecca7bb217c61c45"
        "2118fec1219202a0edcf038bb6373241578be7217ba85a2687f7a0310b2df19f",
    ),
]

# The eight points of small order, canonical, and other spellings that decoders have let through.
SMALL_ORDER = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
]

SEED = bytes(range(32))
PUBLIC_KEY = bytes(SigningKey(SEED).verify_key)
ALPHA = b"an input"
PROOF = ecvrf.prove(SEED, ALPHA)
BETA = ecvrf.proof_to_hash(PROOF)


@pytest.mark.parametrize("vector", VECTORS, ids=["example-16", "example-17", "example-18"])
def test_rfc_9381_vectors(vector: Vector) -> None:
    seed, public_key, alpha, proof, beta = (bytes.fromhex(field) for field in vector)
    assert ecvrf.prove(seed, alpha) == proof
    assert ecvrf.proof_to_hash(proof) == beta
    assert ecvrf.verify(public_key, alpha, proof) == beta
    assert ecvrf.verify(public_key, alpha + b"\x00", proof) is None


def test_the_key_is_the_ed25519_identity() -> None:
    assert ecvrf.verify(PUBLIC_KEY, ALPHA, PROOF) == BETA
    assert len(PROOF) == ecvrf.PROOF_BYTES
    assert len(BETA) == ecvrf.BETA_BYTES


def test_another_key_refuses_the_proof() -> None:
    other = bytes(SigningKey(bytes(32)).verify_key)
    assert ecvrf.verify(other, ALPHA, PROOF) is None


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_prove_refuses_a_seed_of_another_length(length: int) -> None:
    with pytest.raises(ValueError, match=f"seed must be 32 bytes, got {length}"):
        ecvrf.prove(bytes(length), ALPHA)


@pytest.mark.parametrize("proof", [b"", PROOF[:-1], PROOF + b"\x00", b"\xff" * 80, bytes(80)])
def test_malformed_proofs(proof: bytes) -> None:
    assert ecvrf.verify(PUBLIC_KEY, ALPHA, proof) is None
    with pytest.raises(ValueError, match="proof must be 80 bytes"):
        ecvrf.proof_to_hash(proof)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_public_keys_of_another_length(length: int) -> None:
    assert ecvrf.verify(bytes(length), ALPHA, PROOF) is None


@pytest.mark.parametrize("encoding", SMALL_ORDER)
def test_small_order_points_are_refused_as_key_and_as_gamma(encoding: str) -> None:
    point = bytes.fromhex(encoding)
    assert ecvrf.verify(point, ALPHA, PROOF) is None
    assert ecvrf.verify(PUBLIC_KEY, ALPHA, point + PROOF[32:]) is None


def test_a_key_of_small_order_cannot_prove_every_draw() -> None:
    """Were the identity a key, c·Y would vanish and anyone could make this proof."""
    identity = bytes.fromhex(SMALL_ORDER[0])
    hashed = affine_hash_to_curve(identity, ALPHA)
    gamma = identity
    points = [identity, pack(hashed), gamma, pack(scale(5, BASE)), pack(scale(5, hashed))]
    challenge = hashlib.sha512(b"\x03\x02" + b"".join(points) + b"\x00").digest()[:16]
    assert ecvrf.verify(identity, ALPHA, gamma + challenge + (5).to_bytes(32, "little")) is None


def test_points_off_the_curve() -> None:
    off_curve = (2).to_bytes(32, "little")
    assert unpack(off_curve) is None
    assert ecvrf.verify(off_curve, ALPHA, PROOF) is None
    assert ecvrf.verify(PUBLIC_KEY, ALPHA, off_curve + PROOF[32:]) is None


def test_a_gamma_outside_the_subgroup_is_refused_even_where_its_beta_is_the_same() -> None:
    gamma = unpack(PROOF[:32])
    minus_one = (0, FIELD - 1)
    assert gamma is not None
    shifted = pack(add(gamma, minus_one))
    assert scale(8, add(gamma, minus_one)) == scale(8, gamma)
    assert ecvrf.verify(PUBLIC_KEY, ALPHA, shifted + PROOF[32:]) is None


def test_a_scalar_has_one_spelling() -> None:
    scalar = int.from_bytes(PROOF[48:], "little")
    for spelling in (scalar + ORDER, scalar + 8 * ORDER, ORDER, 2**256 - 1):
        respelled = PROOF[:48] + spelling.to_bytes(32, "little")
        assert ecvrf.verify(PUBLIC_KEY, ALPHA, respelled) is None
        with pytest.raises(ValueError, match="proof must be"):
            ecvrf.proof_to_hash(respelled)


def test_zero_scalars_are_no_error() -> None:
    """libsodium raises on a zero scalar, and a stranger may send one."""
    gamma, challenge, scalar = PROOF[:32], PROOF[32:48], PROOF[48:]
    assert ecvrf.verify(PUBLIC_KEY, ALPHA, gamma + bytes(16) + scalar) is None
    assert ecvrf.verify(PUBLIC_KEY, ALPHA, gamma + challenge + bytes(32)) is None
    assert ecvrf.verify(PUBLIC_KEY, ALPHA, gamma + bytes(48)) is None


def test_every_flipped_bit_is_refused() -> None:
    for bit in range(8 * len(PROOF)):
        flipped = bytearray(PROOF)
        flipped[bit // 8] ^= 1 << bit % 8
        assert ecvrf.verify(PUBLIC_KEY, ALPHA, bytes(flipped)) is None, f"bit {bit}"


@given(position=st.integers(0, 79), replacement=st.binary(min_size=1, max_size=48))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_mutated_proof_never_shows_another_draw(position: int, replacement: bytes) -> None:
    mutated = (PROOF[:position] + replacement + PROOF[position + len(replacement) :])[:80]
    assert ecvrf.verify(PUBLIC_KEY, ALPHA, mutated) in (None, BETA)


@given(public_key=st.binary(max_size=40), alpha=st.binary(max_size=40), proof=st.binary(max_size=100))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_no_bytes_make_verify_raise(public_key: bytes, alpha: bytes, proof: bytes) -> None:
    assert ecvrf.verify(public_key, alpha, proof) is None


@given(seed=st.binary(min_size=32, max_size=32), alpha=st.binary(max_size=80))
@settings(max_examples=6, deadline=None, derandomize=True)
def test_beta_agrees_with_a_group_law_written_apart(seed: bytes, alpha: bytes) -> None:
    public_key = bytes(SigningKey(seed).verify_key)
    digest = bytearray(hashlib.sha512(seed).digest()[:32])
    digest[0] &= 248
    digest[31] = (digest[31] & 127) | 64
    gamma = scale(int.from_bytes(digest, "little"), affine_hash_to_curve(public_key, alpha))
    proof = ecvrf.prove(seed, alpha)
    assert proof[:32] == pack(gamma)
    assert ecvrf.verify(public_key, alpha, proof) == (
        hashlib.sha512(b"\x03\x03" + pack(scale(8, gamma)) + b"\x00").digest()
    )


@pytest.mark.parametrize("number", [FIELD, FIELD + 1, 2**255 - 1, 2**255 + 1, 2**255 + FIELD - 1, 2**256 - 1])
def test_hashing_to_the_curve_skips_what_the_rfc_does_not_decode(number: int) -> None:
    """No input is known that hashes to these, so the step is tested alone."""
    encoding = number.to_bytes(32, "little")
    assert unpack(encoding) is None
    assert ecvrf._decode_times_cofactor(encoding) is None


@pytest.mark.parametrize("number", range(12))
def test_hashing_to_the_curve_decodes_what_the_rfc_decodes(number: int) -> None:
    encoding = number.to_bytes(32, "little")
    point = unpack(encoding)
    assert ecvrf._decode_times_cofactor(encoding) == (pack(scale(8, point)) if point else None)


# Edwards25519 in affine coordinates: slow, plain, and nothing shared with libsodium.

Point = tuple[int, int]
CURVE_D = -121665 * pow(121666, FIELD - 2, FIELD) % FIELD


def add(left: Point, right: Point) -> Point:
    (x1, y1), (x2, y2) = left, right
    product = CURVE_D * x1 * x2 * y1 * y2 % FIELD
    x = (x1 * y2 + x2 * y1) * pow(1 + product, FIELD - 2, FIELD) % FIELD
    y = (y1 * y2 + x1 * x2) * pow(1 - product, FIELD - 2, FIELD) % FIELD
    return x, y


def scale(scalar: int, point: Point) -> Point:
    total = (0, 1)
    while scalar:
        if scalar & 1:
            total = add(total, point)
        point = add(point, point)
        scalar >>= 1
    return total


def pack(point: Point) -> bytes:
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def unpack(encoding: bytes) -> Point | None:
    number = int.from_bytes(encoding, "little")
    sign, y = number >> 255, number & (2**255 - 1)
    if y >= FIELD:
        return None
    square = (y * y - 1) * pow(CURVE_D * y * y + 1, FIELD - 2, FIELD) % FIELD
    x = pow(square, (FIELD + 3) // 8, FIELD)
    if x * x % FIELD != square:
        x = x * pow(2, (FIELD - 1) // 4, FIELD) % FIELD
    if x * x % FIELD != square or (x == 0 and sign):
        return None
    return (x if x & 1 == sign else FIELD - x), y


def affine_hash_to_curve(public_key: bytes, alpha: bytes) -> Point:
    for counter in range(256):
        candidate = hashlib.sha512(b"\x03\x01" + public_key + alpha + bytes([counter, 0])).digest()
        point = unpack(candidate[:32])
        if point is not None:
            return scale(8, point)
    raise AssertionError("no point in 256 tries")


_base = unpack(bytes.fromhex("58" + "66" * 31))
assert _base is not None
BASE = _base
