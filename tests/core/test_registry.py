"""Adverts: the newest of each peer counts until it expires, and no flood pushes peers out."""

from __future__ import annotations

import random

import pytest

from p2p_node.core import registry as registry_module
from p2p_node.core.registry import Registry, check_advert
from p2p_node.sim.scenario import MODEL
from protocols import limits
from protocols.digest import tagged
from protocols.effects import Persist
from protocols.envelope import Signed
from protocols.errors import Rejected
from protocols.messages import Accelerator, Advert
from tests.support.builders import NOW_MS, advert, key


def test_a_current_advert() -> None:
    assert check_advert(advert(1), NOW_MS)
    assert not check_advert(advert(1), NOW_MS + 180_000)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"expires_ms": NOW_MS}, "lifetime of 0 ms"),
        ({"expires_ms": NOW_MS + limits.ADVERT_LIFETIME_MS_MAX + 1}, "lifetime of 900001 ms"),
        ({"sent_ms": NOW_MS + 30_001, "expires_ms": NOW_MS + 40_000}, "is in the future"),
        (
            {"accelerators": (Accelerator("cuda:0", "x" * 256, 1),) * 64},
            "bytes exceeds 16384",
        ),
    ],
)
def test_adverts_that_cannot_be(fields: dict[str, object], rule: str) -> None:
    with pytest.raises(Rejected, match=rule):
        check_advert(advert(1, **fields), NOW_MS)


def test_a_higher_sequence_replaces_a_lower_one() -> None:
    registry, old, new = Registry(), advert(1, sequence=1), advert(1, sequence=2)
    assert registry.hear(old, NOW_MS) == [Persist("registry", key(1), old.raw)]
    assert registry.is_news(new)
    registry.hear(new, NOW_MS)
    assert not registry.is_news(old)
    assert registry.hear(old, NOW_MS) == []
    assert registry.get(key(1)) == new


def test_expired_adverts_are_forgotten_also_on_disk() -> None:
    registry = Registry()
    registry.hear(advert(1), NOW_MS)
    registry.hear(advert(2, expires_ms=NOW_MS + 10), NOW_MS)
    assert list(registry.able("sim.hash", MODEL, "exact14", NOW_MS + 10)) == [key(1)]
    assert registry.expire(NOW_MS + 10) == [Persist("registry", key(2), None)]
    assert len(registry) == 1


def test_who_is_able() -> None:
    registry = Registry()
    registry.hear(advert(1), NOW_MS)
    assert registry.able("sim.hash", MODEL, "exact14", NOW_MS)[key(1)].price_micros == 100
    assert registry.able("sim.hash", MODEL, "native", NOW_MS) == {}
    assert registry.able("sim.hash", bytes(32), "exact14", NOW_MS) == {}
    assert registry.able("other", MODEL, "exact14", NOW_MS) == {}


def test_a_flood_of_keys_does_not_push_out_the_eldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2p_node.core.registry.REGISTRY_SAMPLE_MAX", 4)
    registry = Registry()
    for number in range(1, 9):
        registry.hear(advert(number), NOW_MS + number)
    assert len(registry) == 4
    assert registry.get(key(1))
    assert registry.get(key(2))
    # Known peers go on renewing, and expiry makes room.
    renewed = advert(1, sequence=NOW_MS + 1, expires_ms=NOW_MS + 300_000)
    assert registry.hear(renewed, NOW_MS)
    assert registry.hear(advert(9, sent_ms=NOW_MS, expires_ms=NOW_MS + 400_000), NOW_MS + 200_000)
    assert len(registry) == 2


def test_a_restored_advert_does_not_replace_a_newer_one() -> None:
    registry, new = Registry(), advert(1, sequence=2)
    registry.hear(new, NOW_MS)
    registry.restore(advert(1, sequence=1))
    assert registry.get(key(1)) == new


def test_who_goes_is_found_as_if_all_were_compared_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "REGISTRY_SAMPLE_MAX", 12)
    monkeypatch.setattr(registry_module, "REGISTRY_MET_MAX", 4)
    luck = random.Random(5)
    registry = Registry(b"secret")
    compared = 0
    for step in range(400):
        now_ms = NOW_MS + step
        coming = stranger(luck.randrange(60), step)
        if luck.randrange(8):
            registry.hear(coming, now_ms)
        else:
            registry.meet(coming.signer)
        contesting = registry._contested.get("sample")
        if contesting is not None:
            sample = sorted(registry._sorts["sample"], key=lambda key: -registry.known_for_ms(key, now_ms))
            assert contesting == sorted((registry._rank(key), key) for key in sample[6:])
            compared += 1
    assert compared > 100


def stranger(number: int, step: int) -> Signed[Advert]:
    """An advert that nobody checks, one in three with other offerings than before."""
    body = advert(1).body
    fields = {name: getattr(body, name) for name in body.__struct_fields__}
    offerings = () if step % 3 == 0 else body.offerings
    identifier = tagged("id", b"%d %d" % (number, step))
    changed_body = Advert(**(fields | {"sequence": NOW_MS + step, "offerings": offerings}))
    return Signed(identifier, identifier, tagged("key", b"%d" % number), changed_body)
