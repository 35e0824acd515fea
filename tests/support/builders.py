"""Signed statements of one small contract, each honest unless a field is changed.

Peer 0 is the requester, peer 1 the executor, peers 2 to 5 are the electorate. Keys are simulated, and
everybody in the electorate is drawn unless `expected_verifiers_milli` is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, TypeVar

import msgspec

from p2p_node.sim.crypto import SimCrypto, SimKeys
from p2p_node.sim.scenario import MODEL
from p2p_node.sim.workload import chunk_digest, derive_unit
from protocols.digest import tagged
from protocols.effects import Recompute
from protocols.envelope import Signed, seal
from protocols.messages import (
    Acceptance,
    Advert,
    Award,
    BlindVerdict,
    Commitment,
    CommitmentNotice,
    DrawClaim,
    DrawEvidence,
    Member,
    Offer,
    Offering,
    Opening,
    OpeningRequest,
    Reveal,
    Widening,
)
from protocols.units import input_digest, units_digest
from verification.commitment import blind_digest
from verification.duty import draw_proof
from verification.electorate import Electorate
from verification.evidence import Contract
from verification.findings import digest_of, stated
from verification.prover import Prover

__all__ = [
    "CRYPTO",
    "ELECTORATE",
    "EXECUTOR",
    "INPUT",
    "NETWORK",
    "NONCE",
    "NOW_MS",
    "REQUESTER",
    "UNITS",
    "VERIFIERS",
    "advert",
    "award",
    "blind",
    "changed",
    "claim",
    "committed",
    "contract",
    "digests",
    "key",
    "keys",
    "notice",
    "offer",
    "opening",
    "opening_request",
    "prover",
    "reveal",
    "signed",
    "widening",
]

T = TypeVar("T", bound=msgspec.Struct)

NETWORK = "sim"
CRYPTO = SimCrypto()
NOW_MS = 1_700_000_000_000
REQUESTER, EXECUTOR, VERIFIERS = 0, 1, (2, 3, 4, 5)
INPUT = b"the input of the job"
UNITS = tuple(derive_unit(INPUT, index) for index in range(64))
NONCE = bytes(range(32))


@cache
def keys(number: int) -> SimKeys:
    """The simulated key pair with this number."""
    return SimKeys(tagged("p2p-node/test-sim-seed/1", number.to_bytes(4, "little")))


def key(number: int) -> bytes:
    """Its public key."""
    return keys(number).public


def signed(number: int, body: Any) -> Signed[Any]:
    """``body``, signed by peer ``number``."""
    return seal(body, network=NETWORK, key=keys(number))


def changed(body: T, **fields: Any) -> T:
    """A copy with other fields."""
    return msgspec.structs.replace(body, **fields)


ELECTORATE = Electorate([Member(key(number), 1) for number in VERIFIERS])


def offer(number: int = REQUESTER, **fields: Any) -> Signed[Offer]:
    """The job, as it is gossiped."""
    body = Offer(
        nonce=bytes(16),
        mode="auction",
        workload="sim.hash",
        model=MODEL,
        profile="exact14",
        input_digest=input_digest(INPUT),
        input_units=8,
        units_max=64,
        price_micros_max=500,
        ram_bytes_min=0,
        rate_milli_min=0,
        exclude=(),
        sent_ms=NOW_MS,
        bids_close_ms=NOW_MS + 1_000,
        expires_ms=NOW_MS + 240_000,
    )
    return signed(number, changed(body, **fields))


def award(number: int = REQUESTER, **fields: Any) -> Signed[Award]:
    """The terms."""
    body = Award(
        job_id=offer().id,
        attempt=0,
        executor=key(EXECUTOR),
        basis=tagged("p2p-node/test-basis/1"),
        workload="sim.hash",
        model=MODEL,
        profile="exact14",
        input_digest=input_digest(INPUT),
        units_max=64,
        stop_unit=-1,
        chunk_units=32,
        segment_chunks=2,
        prefix_units=0,
        prefix_digest=units_digest(()),
        price_micros=100,
        verifier_fee_micros=10,
        expected_verifiers_milli=1_000_000,
        samples=2,
        electorate_root=ELECTORATE.root,
        electorate_weight=ELECTORATE.total_weight,
        electorate_count=ELECTORATE.count,
        electorate_weight_max=1,
        sent_ms=NOW_MS,
        accept_by_ms=NOW_MS + 5_000,
        finish_by_ms=NOW_MS + 60_000,
        answer_within_ms=8_000,
    )
    return signed(number, changed(body, **fields))


def contract(**fields: Any) -> Contract:
    """The co-signed terms."""
    terms = award(**fields)
    return Contract(terms, signed(EXECUTOR, Acceptance(terms.id, "cpu", 1_000)))


def digests(terms: Award, units: Sequence[int] = UNITS, *, variant: bytes = b"") -> list[bytes]:
    """The digest of every chunk of ``units``; ``variant`` makes them false."""
    task = Recompute(terms.workload, terms.model, terms.profile, INPUT, tuple(units), ())
    return [
        chunk_digest(task, units[: (chunk + 1) * 32], chunk, chunk_units=32, variant=variant)
        for chunk in range(-(-len(units) // 32))
    ]


def prover(agreed: Contract) -> Prover:
    """The executor's prover, with nothing committed yet."""
    return Prover(
        agreed,
        secret=tagged("p2p-node/test-secret/1"),
        network=NETWORK,
        crypto=CRYPTO,
        sign=lambda body: signed(EXECUTOR, body),
    )


def committed(agreed: Contract, *, variant: bytes = b"") -> tuple[Prover, Signed[Commitment]]:
    """A prover that has committed to the whole output in one segment."""
    executor = prover(agreed)
    return executor, executor.commit(digests(agreed.terms, variant=variant), UNITS, final=True)


def notice(agreed: Contract, commitment: Signed[Commitment]) -> Signed[CommitmentNotice]:
    """A commitment, as it is gossiped."""
    body = CommitmentNotice(agreed.award.raw, agreed.acceptance.raw, commitment.raw)
    return signed(EXECUTOR, body)


def widening(commitment: Signed[Commitment], level: int, number: int = REQUESTER) -> Signed[Widening]:
    """The requester's grant of a wider draw."""
    return signed(number, Widening(commitment.id, level))


def claim(number: int, commitment: Signed[Commitment], level: int = 0) -> Signed[DrawClaim]:
    """A verifier's claim to be drawn."""
    proof = draw_proof(keys(number), NETWORK, commitment.id)
    return signed(number, DrawClaim(commitment.id, level, proof))


def blind(
    number: int,
    commitment: Signed[Commitment],
    results: Sequence[bytes],
    *,
    claimed: Signed[DrawClaim] | None = None,
) -> Signed[BlindVerdict]:
    """A verifier's hidden results for chunks 0, 1, ..."""
    hidden = tuple(
        (
            chunk,
            blind_digest(
                verifier=key(number),
                root=commitment.body.root,
                chunk=chunk,
                digest=digest_of(commitment.body.profile, digest),
                nonce=NONCE,
            ),
        )
        for chunk, digest in enumerate(results)
    )
    return signed(
        number,
        BlindVerdict(
            commitment.id, (claimed or claim(number, commitment)).id, hidden, commitment.body.profile
        ),
    )


def reveal(
    number: int, commitment: Signed[Commitment], hidden: Signed[BlindVerdict], results: Sequence[bytes]
) -> Signed[Reveal]:
    """What it hid."""
    profile = commitment.body.profile
    found = [stated(profile, finding) for finding in results]
    return signed(
        number,
        Reveal(
            commitment.id,
            hidden.id,
            NONCE,
            tuple(enumerate(digest for digest, _ in found)),
            profile,
            tuple(p for _, p in found) if profile == "native" else (),
        ),
    )


def opening_request(
    commitment: Signed[Commitment],
    results: Sequence[bytes],
    *numbers: int,
    signer: int = REQUESTER,
    widenings: tuple[bytes, ...] = (),
) -> Signed[OpeningRequest]:
    """A request to open, with the draws and blind verdicts of these verifiers."""
    draws = tuple(
        DrawEvidence(
            claim(number, commitment).raw,
            ELECTORATE.prove(key(number)),
            blind(number, commitment, results).raw,
        )
        for number in numbers
    )
    return signed(signer, OpeningRequest(commitment.id, widenings, draws))


def opening(executor: Prover, commitment: Signed[Commitment], results: Sequence[bytes]) -> Signed[Opening]:
    """All chunks, opened on peer 2's draw."""
    return executor.open(opening_request(commitment, results, 2))


def advert(number: int, **fields: Any) -> Signed[Advert]:
    """What a peer that serves the simulated workload says of itself."""
    body = Advert(
        sequence=NOW_MS,
        sent_ms=NOW_MS,
        expires_ms=NOW_MS + 180_000,
        addresses=(),
        software="test",
        slots_total=2,
        slots_free=2,
        cores=1,
        ram_bytes=1 << 30,
        gemm_fp32_mflops=0,
        gemm_bf16_mflops=0,
        memory_mib_per_s=0,
        disk_mib_per_s=0,
        accelerators=(),
        offerings=(Offering("sim.hash", MODEL, ("exact14",), 100, 200_000, True),),
    )
    return signed(number, changed(body, **fields))
