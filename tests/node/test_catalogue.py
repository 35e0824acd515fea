"""Which models a running node offers: measured once, in the background, and they come and go."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from p2p_node.calibrated import CalibrationFile, Finding, Machine
from p2p_node.catalogue import Catalogue, ModelState
from p2p_node.config import NodeConfig
from p2p_node.errors import UserError
from p2p_node.models import Served, builtin_models
from p2p_node.offerings import abilities_of
from protocols.bidding import Ability

TEXT, DIGITS, *_ = builtin_models()
MACHINE = Machine("Some CPU AVX2", "2.13.0", "kernels-1.so", "0.1.0")
MEASURED = {"memory_bytes": 8 << 30}


def found(served: Served, rate: int = 7_000) -> Finding:
    return Finding(served[0].profiles, rate)


class Bench:
    """Measures as it is told, and counts."""

    def __init__(self, path: Path) -> None:
        self.measured: list[str] = []
        self.offered: list[tuple[Ability, ...]] = []
        self.broken: set[str] = set()
        self.path = path

    def catalogue(self, machine: Machine = MACHINE) -> Catalogue:
        return Catalogue(
            findings=CalibrationFile(self.path, machine),
            measure=self.measure,
            abilities_of=lambda served, finding: abilities_of(
                *served,
                profiles=finding.profiles,
                rate_milli=finding.rate_milli,
                config=NodeConfig(),
                measured=MEASURED,
            ),
            fitting=lambda served: (list(served), []),
            on_change=self.offered.append,
        )

    async def measure(self, served: Served) -> Finding:
        self.measured.append(served[1].name)
        await trio.lowlevel.checkpoint()
        if served[1].name in self.broken:
            raise UserError("it doesn't run here")
        return found(served)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "node" / "calibrations.json")


async def settle(catalogue: Catalogue) -> None:
    """Run until nothing is left to measure."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(catalogue.run)
        while catalogue.measuring:
            await trio.sleep(0.001)
        nursery.cancel_scope.cancel()


def models_offered(abilities: tuple[Ability, ...]) -> set[bytes]:
    return {ability.offering.model for ability in abilities}


async def test_a_model_is_offered_once_it_is_measured(bench: Bench) -> None:
    catalogue = bench.catalogue()
    catalogue.take([TEXT, DIGITS])
    assert catalogue.measuring == ["kjv-2m", "digits-8x8"]
    assert bench.offered == [()]
    await settle(catalogue)
    assert [models_offered(abilities) for abilities in bench.offered] == [
        set(),
        {TEXT[1].digest},
        {TEXT[1].digest, DIGITS[1].digest},
    ]
    assert {one.state for one in catalogue.models} == {ModelState.OFFERED}


async def test_the_next_start_offers_it_at_once(bench: Bench) -> None:
    first = bench.catalogue()
    first.take([TEXT])
    await settle(first)
    second = bench.catalogue()
    second.take([TEXT])
    assert second.abilities == first.abilities != ()
    assert (second.measuring, bench.measured) == ([], ["kjv-2m"])


@pytest.mark.parametrize(
    "other",
    [
        replace(MACHINE, processor="Another"),
        replace(MACHINE, torch="2.14.0"),
        replace(MACHINE, kernels=""),
        replace(MACHINE, version="0.2.0"),
        replace(MACHINE, is_exact=False),
    ],
)
def test_what_was_measured_holds_for_one_machine_and_release(bench: Bench, other: Machine) -> None:
    CalibrationFile(bench.path, MACHINE).keep(TEXT, found(TEXT))
    assert CalibrationFile(bench.path, MACHINE).find(TEXT) == found(TEXT)
    assert CalibrationFile(bench.path, other).find(TEXT) is None
    CalibrationFile(bench.path, other).keep(TEXT, found(TEXT, 1))
    assert CalibrationFile(bench.path, MACHINE).find(TEXT) == found(TEXT)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": {"profiles": 3}}', b"\xff"])
def test_a_damaged_file_is_begun_anew(bench: Bench, content: bytes) -> None:
    bench.path.parent.mkdir()
    bench.path.write_bytes(content)
    findings = CalibrationFile(bench.path, MACHINE)
    assert findings.find(TEXT) is None
    findings.keep(TEXT, found(TEXT))
    assert findings.find(TEXT) == found(TEXT)


async def test_one_that_doesnt_run_is_refused_and_the_others_go_on(bench: Bench) -> None:
    bench.broken = {"kjv-2m"}
    catalogue = bench.catalogue()
    catalogue.take([TEXT, DIGITS])
    await settle(catalogue)
    states = {one.name: (one.state, one.why) for one in catalogue.models}
    assert states["kjv-2m"] == (ModelState.REFUSED, "it doesn't run here")
    assert states["digits-8x8"] == (ModelState.OFFERED, "")
    # It may be a fault that passes, so the next start tries again.
    assert bench.catalogue().findings.find(TEXT) is None


async def test_models_come_and_go_while_the_node_runs(bench: Bench) -> None:
    catalogue = bench.catalogue()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(catalogue.run)
        catalogue.take([TEXT])
        await trio.testing.wait_all_tasks_blocked()
        catalogue.take([TEXT, DIGITS])
        await trio.testing.wait_all_tasks_blocked()
        assert models_offered(bench.offered[-1]) == {TEXT[1].digest, DIGITS[1].digest}
        assert bench.measured == ["kjv-2m", "digits-8x8"]
        catalogue.withdraw("kjv-2m")
        assert models_offered(bench.offered[-1]) == {DIGITS[1].digest}
        assert TEXT[1].digest not in catalogue.by_digest
        nursery.cancel_scope.cancel()
    assert list(catalogue.places) == ["digits-8x8"]


async def test_a_model_under_two_names_stays_until_both_are_gone(bench: Bench) -> None:
    catalogue = bench.catalogue()
    catalogue.take([TEXT, (TEXT[0], replace(TEXT[1], name="twin"))])
    await settle(catalogue)
    assert bench.measured == ["kjv-2m"]
    catalogue.withdraw("kjv-2m")
    assert catalogue.by_digest[TEXT[1].digest].name == "twin"
    assert models_offered(catalogue.abilities) == {TEXT[1].digest}
