"""All verification that one peer does for others: duties, accusations, and the fees it is owed."""

from __future__ import annotations

from collections import OrderedDict

from p2p_node.core.disputes import Ground
from p2p_node.core.lanes import Lanes
from p2p_node.core.surroundings import Surroundings
from protocols.bidding import Ability, find_ability, fits
from protocols.crypto import KeyPair
from protocols.effects import Effect, Notify, Persist, Run
from protocols.envelope import Signed
from protocols.events import Heard, RunEvent, RunRecomputed, TimerFired
from protocols.limits import DISPUTES_MAX, DUTIES_MAX
from protocols.messages import (
    Assignment,
    Commitment,
    FraudProof,
    Opening,
    Widening,
)
from verification.duty import Duty, DutyState, draw_level, draw_proof
from verification.evidence import Contract
from verification.fraud import Accusation, open_proof
from verification.sortition import alpha

__all__ = ["Verifier"]

ACCUSATIONS_MAX = 16
"""Recomputations for fraud proofs in hand; more are left to others."""


class Verifier:
    """One peer as a verifier."""

    def __init__(self, node: Surroundings, *, keys: KeyPair, abilities: tuple[Ability, ...]) -> None:
        self.abilities = abilities
        self.is_paused = False
        """Whether it claims no draw: nobody has to."""
        self.duties: OrderedDict[bytes, Duty] = OrderedDict()
        self._node = node
        self._keys = keys
        self._accusations: dict[bytes, tuple[Signed[FraudProof], Accusation]] = {}
        self.lanes = Lanes(node, own=keys.public)
        self._grounds: OrderedDict[bytes, Ground] = OrderedDict()

    def _is_able(self, contract: Contract) -> bool:
        return fits(find_ability(self.abilities, contract.terms), contract.terms)

    # --- Duties ----------------------------------------------------------------------------------

    def hear_commitment(
        self, contract: Contract, commitment: Signed[Commitment], now_ms: int
    ) -> list[Effect]:
        """Draw: did our VRF make us a verifier of this commitment?"""
        own = self._keys.public
        if self.is_paused:
            return []
        if own in (contract.requester, contract.executor) or commitment.id in self.duties:
            return []
        if not self._is_able(contract) or not self._node.standings.is_welcome(contract.requester, now_ms):
            return []
        if not self.lanes.fees.is_good(contract.requester, contract.terms.verifier_fee_micros):
            return []  # It let us verify before and didn't pay.
        if contract.terms.sent_ms > now_ms + contract.terms.answer_within_ms:
            return []
        proof = draw_proof(self._keys, self._node.network, commitment.id)
        beta = self._node.crypto.vrf_output(own, alpha(self._node.network, commitment.id), proof)
        level = None if beta is None else draw_level(beta, contract)
        if level is None or not self._make_room():
            return []
        duty = Duty(
            contract,
            commitment,
            level=level,
            proof=proof,
            keys=self._keys,
            secret=self._node.secret,
            network=self._node.network,
            crypto=self._node.crypto,
            sign=self._node.sign,
        )
        self.duties[commitment.id] = duty
        return duty.start(now_ms)

    def _make_room(self) -> bool:
        """Whether there is room for one more duty; the oldest that cost no work yet may go for it.

        Anybody can announce commitments of contracts with itself, and must not use up our duties.
        """
        if len(self.duties) < DUTIES_MAX:
            return True
        idle = (DutyState.DONE, DutyState.WAITING, DutyState.CLAIMED)
        oldest = next((key for key, duty in self.duties.items() if duty.state in idle), None)
        if oldest is not None:
            del self.duties[oldest]
        return oldest is not None

    def hear(self, message: Signed[Assignment | Opening | Widening], now_ms: int) -> list[Effect]:
        """A message about a duty; about any other commitment it concerns somebody else."""
        duty = self.duties.get(message.body.commitment_id)
        if duty is None:
            return []
        was, was_hidden = duty.state, duty.state is DutyState.HIDDEN
        effects = duty.handle(Heard(message), now_ms)
        if isinstance(message.body, Assignment) and was is DutyState.CLAIMED:
            self._take_ground(duty, message.body)
        elif isinstance(message.body, Opening) and _agrees(effects):
            self._grounds.pop(duty.commitment.id, None)
        if was_hidden and duty.state is DutyState.DONE:
            award = duty.contract.award
            effects += self.lanes.expect_fee(award.id, award.signer, duty.fee_micros, now_ms)
        return effects

    def _take_ground(self, duty: Duty, given: Assignment) -> None:
        """Keep what a dispute would need, should the executor's digests differ from ours."""
        identifier = duty.commitment.id
        verifiers = frozenset({self._keys.public})
        self._grounds[identifier] = Ground(
            duty.contract, duty.commitment, given.input, given.units, verifiers
        )
        # A job's output may be long; of the oldest we then have nothing to say in a dispute.
        while len(self._grounds) > DISPUTES_MAX:
            self._grounds.popitem(last=False)

    def ground(self, commitment_id: bytes) -> Ground | None:
        """What it takes to trace a chunk that we verified and found different."""
        return self._grounds.get(commitment_id)

    def timer_fired(self, key: tuple[str, bytes], now_ms: int) -> list[Effect]:
        """A duty expired."""
        self._grounds.pop(key[1], None)
        duty = self.duties.get(key[1])
        return duty.handle(TimerFired(key), now_ms) if duty else []

    def run_event(self, event: RunEvent, now_ms: int) -> list[Effect]:
        """A recomputation ended, for a duty or for an accusation."""
        role, identifier = event.key[0], event.key[1]
        if role == "fraud":
            return self._settle_accusation(identifier, event, now_ms)
        duty = self.duties.get(identifier)
        return duty.handle(event, now_ms) if duty else []

    def forget(self, now_ms: int) -> None:
        """Drop duties that are over."""
        for identifier in [i for i, duty in self.duties.items() if duty.state is DutyState.DONE]:
            del self.duties[identifier]

    # --- Accusations -----------------------------------------------------------------------------

    def hear_accusation(
        self, message: Signed[FraudProof], accusation: Accusation, now_ms: int
    ) -> list[Effect]:
        """Recompute an accused chunk ourselves; nobody is convicted on anybody's word."""
        if accusation.accused == self._keys.public or not self._is_able(accusation.contract):
            return []
        if len(self._accusations) >= ACCUSATIONS_MAX:
            return []
        if not self._node.standings.is_welcome(message.signer, now_ms):
            return []  # It accused falsely before, and each accusation costs us a recomputation.
        self._accusations[message.id] = (message, accusation)
        return [Run(("fraud", message.id), accusation.task)]

    def _settle_accusation(self, identifier: bytes, event: RunEvent, now_ms: int) -> list[Effect]:
        held = self._accusations.get(identifier)
        if held is None:
            return []
        message, accusation = held
        del self._accusations[identifier]
        if not isinstance(event, RunRecomputed):
            return []
        recomputed = dict(event.digests).get(accusation.chunk)
        if recomputed is None:
            return []
        if accusation.is_guilty(recomputed):
            return self._convict(message, accusation)
        # The accusation itself is the proof against the accuser.
        self._node.standings.record_failure(message.signer, now_ms)
        return [Notify(b"", "false-accusation", {"accuser": message.signer, "accused": accusation.accused})]

    def _convict(self, message: Signed[FraudProof], accusation: Accusation) -> list[Effect]:
        self._node.standings.convict(accusation.accused)
        return [
            Persist("convictions", accusation.accused, message.raw),
            Notify(
                b"",
                "convicted",
                {"peer": accusation.accused, "role": accusation.role, "chunk": accusation.chunk},
            ),
        ]

    def convict_own(self, message: Signed[FraudProof]) -> list[Effect]:
        """Remember a conviction of our own, whose chunk we recomputed before we accused."""
        accusation = open_proof(message.body, network=self._node.network, crypto=self._node.crypto)
        return self._convict(message, accusation)


def _agrees(effects: list[Effect]) -> bool:
    return any(isinstance(e, Notify) and e.event == "verified" and e.details["agrees"] for e in effects)
