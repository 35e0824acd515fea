"""One example of every message, with real signatures and true digests where they are cheap to have."""

from __future__ import annotations

from protocols import merkle
from protocols import messages as m
from protocols.auction import bid_seal
from protocols.digest import tagged
from protocols.envelope import Signed, seal
from protocols.identity import peer_id
from protocols.places import ability_key, place_of
from protocols.units import input_digest, units_digest
from tests.support.keys import keyring
from verification.commitment import blind_digest, chunk_leaf
from verification.dispute_evidence import chunk_value, evidence_digest, opened_digest
from verification.electorate import Electorate
from verification.sortition import alpha

__all__ = ["NETWORK", "examples"]

NETWORK = "vectors"
REQUESTER, EXECUTOR, VERIFIER = 0, 1, 2
_T = 1_700_000_000_000


def _digest(name: str) -> bytes:
    return tagged("p2p-node/vector/1", name.encode())


def examples() -> dict[str, tuple[int, Signed[m.Body]]]:
    """(number of the signing test key, message) by kind, in the order of a job's life."""
    made: dict[str, tuple[int, Signed[m.Body]]] = {}

    def sign(number: int, body: m.Body) -> Signed[m.Body]:
        signed = seal(body, network=NETWORK, key=keyring(number))
        made[body.KIND] = (number, signed)
        return signed

    model, prompt, units = _digest("model"), b"In the beginning", (7, 300, 70_000, 2**32 - 1)
    salt, digest, nonce = _digest("salt"), _digest("chunk"), _digest("nonce")
    executor, verifier = keyring(EXECUTOR).public, keyring(VERIFIER).public
    offering = m.Offering("lm.generate", model, ("exact14", "exact21"), 100, 45_000, True)
    advert = m.Advert(
        sequence=_T,
        sent_ms=_T,
        expires_ms=_T + 180_000,
        addresses=("/ip4/127.0.0.1/tcp/4001",),
        software="p2p-node 0.1.0",
        slots_total=2,
        slots_free=1,
        cores=8,
        ram_bytes=2**34,
        gemm_fp32_mflops=90_000,
        gemm_bf16_mflops=180_000,
        memory_mib_per_s=9_000,
        disk_mib_per_s=500,
        accelerators=(m.Accelerator("cuda:0", "a graphics card", 2**33),),
        offerings=(offering,),
        models=(m.SharedModel("kjv-2m", model, _digest("manifest"), 400),),
    )
    advert_raw = sign(EXECUTOR, advert).raw
    where = ("/ip4/127.0.0.1/tcp/4001/p2p/" + peer_id(executor),)
    record = sign(EXECUTOR, m.ProviderRecord(ability_key("lm.generate", model), _T, _T + 3_600_000, where))
    place = sign(EXECUTOR, m.ProviderRecord(place_of(executor), _T, _T + 3_600_000, where))
    question = sign(REQUESTER, m.FindClosest(ability_key("lm.generate", model), 1, True, b""))
    sign(VERIFIER, m.Closest(question.id, b"", (place.raw,), (record.raw,)))
    sign(EXECUTOR, m.StoreRecord(record.raw))
    offer = sign(
        REQUESTER,
        m.Offer(
            nonce=bytes(range(16)),
            mode="auction",
            workload="lm.generate",
            model=model,
            profile="exact14",
            input_digest=input_digest(prompt),
            input_units=3,
            units_max=64,
            price_micros_max=500,
            ram_bytes_min=2**29,
            rate_milli_min=1_000,
            exclude=(_digest("excluded peer"),),
            sent_ms=_T,
            bids_close_ms=_T + 2_000,
            expires_ms=_T + 630_000,
            blobs=(m.BlobRecord(_digest("blob"), 3 << 20),),
            is_private=False,
        ),
    )
    bid_body = m.Bid(offer.id, nonce, 120, 4_000, 45_000, "cpu", True, 0)
    seal_of_bid = bid_seal(executor, bid_body)
    sign(EXECUTOR, m.BidSeal(offer.id, seal_of_bid))
    close = sign(REQUESTER, m.AuctionClose(offer.id, (m.Sealed(executor, seal_of_bid),), _T + 2_000))
    bid = sign(EXECUTOR, bid_body)
    sign(VERIFIER, m.Decline(offer.id, "ram", 2**28, 2**29, "half of what it takes"))
    members = (m.Member(verifier, 1), m.Member(keyring(3).public, 3))
    electorate = Electorate(members)
    award = sign(
        REQUESTER,
        m.Award(
            job_id=offer.id,
            attempt=0,
            executor=executor,
            basis=bid.id,
            workload="lm.generate",
            model=model,
            profile="exact14",
            input_digest=input_digest(prompt),
            units_max=64,
            stop_unit=-1,
            chunk_units=32,
            segment_chunks=4,
            prefix_units=0,
            prefix_digest=units_digest(()),
            price_micros=120,
            verifier_fee_micros=10,
            expected_verifiers_milli=2_000,
            samples=1,
            electorate_root=electorate.root,
            electorate_weight=electorate.total_weight,
            electorate_count=electorate.count,
            electorate_weight_max=3,
            sent_ms=_T + 3_000,
            accept_by_ms=_T + 8_000,
            finish_by_ms=_T + 300_000,
            answer_within_ms=30_000,
        ),
    )
    sign(REQUESTER, m.Proposal(award.raw, offer.raw, prompt, (), electorate.members, 0))
    acceptance = sign(EXECUTOR, m.Acceptance(award.id, "cpu", 4_000))
    sign(EXECUTOR, m.Refusal(award.id, "busy", "2 slots, none free"))
    sign(REQUESTER, m.Cancel(award.id, "fraud"))
    sign(REQUESTER, m.Closed(offer.id, executor))
    sign(EXECUTOR, m.Output(award.id, 0, units))
    sign(EXECUTOR, m.Progress(award.id, "fetching", 1 << 20, 3 << 20))
    sign(EXECUTOR, m.ExecutionFailed(award.id, "memory", "the worker needed more than it had"))

    leaf = chunk_leaf(executor=executor, job_id=award.id, segment=0, chunk=0, salt=salt, digest=digest)
    commitment = sign(
        EXECUTOR,
        m.Commitment(
            award.id, 0, b"", 0, 1, merkle.root([leaf]), len(units), units_digest(units), True, "exact14"
        ),
    )
    sign(EXECUTOR, m.CommitmentNotice(award.raw, acceptance.raw, commitment.raw))
    widening = sign(REQUESTER, m.Widening(commitment.id, 1))
    proof = keyring(VERIFIER).vrf_prove(alpha(NETWORK, commitment.id))
    claim = sign(VERIFIER, m.DrawClaim(commitment.id, 1, proof))
    membership = electorate.prove(verifier)
    sign(REQUESTER, m.Assignment(commitment.id, claim.id, membership, prompt, units))
    root = merkle.root([leaf])
    hidden = blind_digest(verifier=verifier, root=root, chunk=0, digest=digest, nonce=nonce)
    blind = sign(VERIFIER, m.BlindVerdict(commitment.id, claim.id, ((0, hidden),), "exact14"))
    draw = m.DrawEvidence(claim.raw, membership, blind.raw)
    sign(REQUESTER, m.OpeningRequest(commitment.id, (widening.raw,), (draw,)))
    opening = sign(EXECUTOR, m.Opening(commitment.id, (m.ChunkOpening(0, salt, digest, ()),)))
    reveal = sign(VERIFIER, m.Reveal(commitment.id, blind.id, nonce, ((0, digest),), "exact14"))
    fraud = sign(
        REQUESTER,
        m.FraudProof(award.raw, acceptance.raw, commitment.raw, opening.raw, 0, prompt, units),
    )
    other = seal(
        m.Commitment(
            award.id, 0, b"", 0, 1, merkle.root([salt]), len(units), units_digest(units), True, "exact14"
        ),
        network=NETWORK,
        key=keyring(EXECUTOR),
    )
    first, second = sorted((commitment, other), key=lambda one: one.id)
    sign(VERIFIER, m.Equivocation(first.raw, second.raw))
    dispute = sign(REQUESTER, m.Dispute(commitment.id, 0, opening.raw, reveal.raw))
    sign(VERIFIER, m.DisputeDeclined(dispute.id, "unsupported"))
    weights = m.OpenedValue(1, "float32", (2, 1), bytes.fromhex("0000803f000000c0"))
    leaves = [_digest("input value"), opened_digest(weights), _digest("inner value"), chunk_value(digest)]
    root = merkle.root(leaves)
    path = merkle.prove(leaves, 3)
    trace = sign(EXECUTOR, m.TraceRoot(dispute.id, commitment.id, 0, _digest("program"), 4, root, path))
    sign(EXECUTOR, m.TraceChildren(dispute.id, 1, 1, leaves[2], leaves[3]))
    proof_of_operator = sign(
        VERIFIER,
        m.OperatorFraud(
            award=award.raw,
            acceptance=acceptance.raw,
            commitment=commitment.raw,
            statement=opening.raw,
            trace=trace.raw,
            input=prompt,
            units=units,
            index=2,
            digest=leaves[2],
            path=merkle.prove(leaves, 2),
            values=(weights,),
            paths=(merkle.prove(leaves, 1),),
            context=b"the configuration",
        ),
    )
    evidence = evidence_digest(proof_of_operator.raw)
    sign(
        VERIFIER,
        m.FraudNotice(evidence, len(proof_of_operator.raw), executor, commitment.id, 0, _T + 9_000),
    )
    sign(REQUESTER, m.EvidenceWant(evidence, 0))
    sign(VERIFIER, m.EvidencePart(evidence, 0, proof_of_operator.raw))
    voucher = sign(REQUESTER, m.Voucher(award.id, executor, 1, 480, 0, _T + 86_400_000, commitment.id))
    receipt_of_voucher = sign(EXECUTOR, m.VoucherReceipt(voucher.id, 480))
    sign(VERIFIER, m.SyncSummary((offer.id, commitment.id)))
    sign(REQUESTER, m.SyncWant((commitment.id,)))
    sign(VERIFIER, m.Headcount(1_200))
    sign(REQUESTER, m.MembersWant("lm.generate", model, 4, 5))
    sign(EXECUTOR, m.Members("lm.generate", model, 2, (advert_raw,)))
    sign(REQUESTER, m.Entrusted(offer.id, 2, offer.raw))
    verifier_record = m.VerifierRecord(claim.raw, membership, blind.raw, reveal.raw, b"", b"")
    segment = m.SegmentRecord(
        commitment.raw,
        (widening.raw,),
        opening.raw,
        (verifier_record,),
        "fraud",
        fraud.raw,
        voucher.raw,
        receipt_of_voucher.raw,
    )
    receipt = sign(
        REQUESTER,
        m.ReceiptBody(
            offers=(offer.raw,),
            closes=(close.raw,),
            bids=(bid.raw,),
            attempts=(m.AttemptRecord(award.raw, acceptance.raw, bid.raw, "fraud", (segment,)),),
            input=prompt,
            units=units,
            state="verification_failed",
            finished_ms=_T + 10_000,
        ),
    )
    sign(
        REQUESTER,
        m.WholeReceiptBody(
            nonce=bytes(16),
            workload=offer.body.workload,
            model=offer.body.model,
            profile=offer.body.profile,
            input=prompt,
            counts=(2, 1),
            jobs=(m.PartRecord(1, receipt.raw),),
            state="verification_failed",
            finished_ms=_T + 11_000,
        ),
    )
    return made
