"""Who has the machine: the owner's word, and the owner's use of it, on a clock made of numbers."""

from __future__ import annotations

import pytest

from p2p_node.errors import UserError
from p2p_node.pausing import IdleWatch, Pausing


class Heard(list[tuple[frozenset[str], str]]):
    """What a node was told to pause."""

    def __call__(self, devices: frozenset[str], why: str) -> None:
        self.append((devices, why))


def test_devices_are_paused_one_by_one_or_all_together() -> None:
    heard = Heard()
    pausing = Pausing(("cpu", "cuda:0"), heard)
    pausing.pause("cuda:0")
    pausing.pause()
    pausing.resume()
    assert [devices for devices, _ in heard] == [{"cuda:0"}, {"cuda:0", "all"}, frozenset()]
    assert pausing.paused == frozenset()


def test_what_cannot_be_paused_or_resumed_is_named() -> None:
    pausing = Pausing(("cpu",), Heard())
    with pytest.raises(UserError, match=r"device 'cuda:0' must be one of all, cpu"):
        pausing.pause("cuda:0")
    pausing.pause()
    with pytest.raises(UserError, match="cpu alone can't be resumed"):
        pausing.resume("cpu")


def test_an_idle_machine_does_not_lift_what_its_owner_paused() -> None:
    heard = Heard()
    pausing = Pausing(("cpu",), heard)
    pausing.set_in_use(True)
    pausing.set_in_use(True)
    pausing.pause("cpu")
    pausing.set_in_use(False)
    assert pausing.paused == {"cpu"}
    reasons = [why for _, why in heard]
    assert reasons[0] == reasons[2] == "the owner uses this machine"
    assert reasons[1] == "the owner paused this peer"


@pytest.mark.parametrize(
    ("looks", "in_use"),
    [
        ([(59_999, 0.0, 0)], True),
        ([(60_000, 0.0, 0)], False),
        ([(60_000, 25.1, 0)], True),
        ([(60_000, 24.9, 0)], False),
        ([(60_000, 90.0, 0), (119_999, 0.0, 0)], True),
        ([(60_000, 90.0, 0), (120_000, 0.0, 0)], False),
        ([(60_000, 0.0, 30_000)], True),
        ([(90_000, 0.0, 30_000)], False),
    ],
)
def test_a_machine_is_idle_when_nothing_was_seen_for_a_minute(
    looks: list[tuple[int, float, int]], in_use: bool
) -> None:
    watch = IdleWatch(0)
    seen = [watch.observe(at, others_percent=load, input_ms=typed) for at, load, typed in looks]
    assert seen[-1] is in_use
