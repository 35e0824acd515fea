"""The models of a running node: which there are, which are being measured, and which it offers.

A model is offered once this machine was measured with it: at once where an earlier start's measurement holds,
else in the background, one model after the other, while the node is up. Models come and go while it runs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import structlog
import trio

from p2p_node.calibrated import CalibrationFile, Finding
from p2p_node.errors import UserError
from p2p_node.executor import ModelPlace
from p2p_node.models import Served, places_of
from protocols.bidding import Ability

__all__ = ["Catalogue", "ModelState", "Shelved"]

log = structlog.get_logger(__name__)


class ModelState(StrEnum):
    """What a node does about a model that it has."""

    MEASURING = "measuring"
    """It will offer the model once it knows how fast it is with it."""
    OFFERED = "offered"
    REFUSED = "refused"
    """It can't run the model, or not so that others could judge it."""


@dataclass(slots=True)
class Shelved:
    """One model of a node.

    Args:
        served: the model and its kind of work.
        state: see there.
        why: it is refused, for people.
        abilities: what is offered of it.
    """

    served: Served
    state: ModelState = ModelState.MEASURING
    why: str = ""
    abilities: tuple[Ability, ...] = ()

    @property
    def name(self) -> str:
        """By which jobs call it."""
        return self.served[1].name


@dataclass(slots=True, kw_only=True)
class Catalogue:
    """See the module.

    Args:
        findings: what was measured before; None until `open` says so.
        measure: what this machine may offer of a model; raises `UserError` if it doesn't run here.
        abilities_of: what a finding is worth to others.
        fitting: of some models those that fit into a worker's memory, and why not the others.
        find: every model of this machine, from the disk; raises `UserError` where one is broken.
        places: of all models by name; changed in place, since others hold it.
        by_digest: of the same, in the same way.
    """

    findings: CalibrationFile | None = None
    measure: Callable[[Served], Awaitable[Finding]]
    abilities_of: Callable[[Served, Finding], Iterable[Ability]]
    fitting: Callable[[Sequence[Served]], tuple[list[Served], list[str]]]
    find: Callable[[], list[Served]] = list
    places: dict[str, ModelPlace] = field(default_factory=dict)
    by_digest: dict[bytes, ModelPlace] = field(default_factory=dict)
    on_change: Callable[[tuple[Ability, ...]], None] = lambda abilities: None
    """Told what is offered from now on."""
    _shelf: dict[str, Shelved] = field(default_factory=dict)
    _news: trio.Event = field(default_factory=trio.Event)

    @property
    def models(self) -> tuple[Shelved, ...]:
        """All of them."""
        return tuple(self._shelf.values())

    @property
    def measuring(self) -> list[str]:
        """Names of models that will be offered once they are measured."""
        return [one.name for one in self._shelf.values() if one.state is ModelState.MEASURING]

    @property
    def abilities(self) -> tuple[Ability, ...]:
        """All that is offered; a model with two names once."""
        return tuple(dict.fromkeys(ability for one in self._shelf.values() for ability in one.abilities))

    def take(self, served: Sequence[Served]) -> None:
        """Add models, and offer at once those that were measured before. Known ones stay as they are."""
        fresh = [one for one in served if one[1].name not in self._shelf]
        fit, declined = self.fitting(fresh)
        for why in declined:
            log.warning("a model isn't offered", why=why)
        for one in fit:
            shelved = self._shelf[one[1].name] = Shelved(one)
            for name, place in places_of([one]).items():
                self.places[name] = place
                self.by_digest.setdefault(place.digest, place)
            self._settle_known(shelved)
        self.on_change(self.abilities)
        self._news.set()

    def open(self, findings: CalibrationFile) -> None:
        """The workers are ready: offer at once what was measured before."""
        self.findings = findings
        for shelved in self.models:
            self._settle_known(shelved)
        self.on_change(self.abilities)
        self._news.set()

    def _settle_known(self, shelved: Shelved) -> None:
        finding = self.findings.find(shelved.served) if self.findings is not None else None
        if finding is not None:
            self._settle(shelved, finding)

    def withdraw(self, name: str) -> None:
        """Offer a model no longer, and forget it.

        Raises:
            KeyError: there is no such model.
        """
        shelved = self._shelf.pop(name)
        place = self.places.pop(name)
        # Another name may stand for the same files.
        twin = next((other for other in self.places.values() if other.digest == place.digest), None)
        if twin is None:
            self.by_digest.pop(place.digest, None)
        else:
            self.by_digest[place.digest] = twin
        log.info("model withdrawn", model=name, was=shelved.state.value)
        self.on_change(self.abilities)

    async def refresh(self) -> None:
        """Look for models again: take what is new, withdraw what is gone or another under its name.

        Raises:
            UserError: one is broken; then all stays as it was.
        """
        # A thread: large models take a while to hash.
        found = await trio.to_thread.run_sync(self.find)
        here = {model.name: model.digest for _, model in found}
        for one in self.models:
            if here.get(one.name) != one.served[1].digest:
                self.withdraw(one.name)
        self.take(found)

    async def run(self) -> None:
        """Measure what has to be, until cancelled."""
        while True:
            shelved = next((one for one in self.models if one.state is ModelState.MEASURING), None)
            if shelved is None or self.findings is None:
                self._news = trio.Event()
                await self._news.wait()
                continue
            await self._measure(shelved, self.findings)
            if self._shelf.get(shelved.name) is shelved:
                self.on_change(self.abilities)

    async def _measure(self, shelved: Shelved, findings: CalibrationFile) -> None:
        async with findings.turn():
            # Another process may have done it while we waited for our turn.
            finding = findings.find(shelved.served)
            if finding is None:
                began = trio.current_time()
                try:
                    finding = await self.measure(shelved.served)
                except UserError as error:
                    shelved.state, shelved.why = ModelState.REFUSED, str(error)
                    log.warning("a model isn't offered", model=shelved.name, why=str(error))
                    return
                took_ms = round(1_000 * (trio.current_time() - began))
                log.info("model measured", model=shelved.name, rate_milli=finding.rate_milli, took_ms=took_ms)
                # Less than all of it may be a fault that passes.
                if finding.profiles == shelved.served[0].profiles:
                    findings.keep(shelved.served, finding)
        self._settle(shelved, finding)

    def _settle(self, shelved: Shelved, finding: Finding) -> None:
        shelved.abilities = tuple(self.abilities_of(shelved.served, finding))
        if shelved.abilities:
            shelved.state, shelved.why = ModelState.OFFERED, ""
        else:
            shelved.state = ModelState.REFUSED
            shelved.why = "this machine may be judged by none of its numerics profiles"
