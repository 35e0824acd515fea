"""The machine is its owner's: which devices the network may not use now, and when the owner is at work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import trio

from p2p_node.core.provider import ALL_DEVICES
from p2p_node.errors import UserError

__all__ = ["IdleWatch", "Pausing", "watch_use"]

LOOK_S = 5.0
"""How often `watch_use` looks."""


class Pausing:
    """What is paused, by the owner's word or by the owner's use of the machine.

    Args:
        devices: torch names of those that this node offers.
        apply: called with all that is paused, and why, whenever it changes.
    """

    def __init__(self, devices: Sequence[str], apply: Callable[[frozenset[str], str], None]) -> None:
        self._devices = tuple(devices)
        self._apply = apply
        self._by_owner: set[str] = set()
        self._is_in_use = False

    def know(self, devices: Sequence[str]) -> None:
        """These are the devices that this node offers: it has looked."""
        self._devices = tuple(devices)

    @property
    def paused(self) -> frozenset[str]:
        """Devices that are paused; `ALL_DEVICES` for every one."""
        return frozenset(self._by_owner) | ({ALL_DEVICES} if self._is_in_use else frozenset())

    @property
    def is_in_use(self) -> bool:
        """Whether a node that only works on an idle machine waits for it to be one."""
        return self._is_in_use

    def pause(self, device: str | None = None) -> None:
        """Stop offering a device, or all, and hand back what runs on it.

        Raises:
            UserError: there is no such device.
        """
        self._by_owner.add(self._known(device))
        self._tell("the owner paused this peer")

    def resume(self, device: str | None = None) -> None:
        """Offer a device again, or all.

        Raises:
            UserError: there is no such device, or only all can be resumed.
        """
        name = self._known(device)
        if name == ALL_DEVICES:
            self._by_owner.clear()
        elif ALL_DEVICES in self._by_owner:
            raise UserError(f"all devices are paused, so {name} alone can't be resumed: leave the device out")
        else:
            self._by_owner.discard(name)
        self._tell("the owner paused this peer")

    def set_in_use(self, is_in_use: bool) -> None:
        """Whether the owner uses the machine now, for a node that only works when it is idle."""
        if is_in_use != self._is_in_use:
            self._is_in_use = is_in_use
            self._tell("the owner uses this machine")

    def _tell(self, why: str) -> None:
        self._apply(self.paused, why)

    def _known(self, device: str | None) -> str:
        if device is None or device == ALL_DEVICES:
            return ALL_DEVICES
        if device not in self._devices:
            raise UserError(f"device {device!r} must be one of {', '.join((ALL_DEVICES, *self._devices))}")
        return device


class IdleWatch:
    """Decides whether the owner uses the machine, from what was seen and when.

    Args:
        others_percent_max: of the machine's processor time, what programs other than ours may take.
        quiet_ms: how long it must have been quiet.
        now_ms: the time; nothing is known of what was before.
    """

    def __init__(self, now_ms: int, *, others_percent_max: float = 25.0, quiet_ms: int = 60_000) -> None:
        self._others_percent_max = others_percent_max
        self._quiet_ms = quiet_ms
        self._used_ms = now_ms

    def observe(self, now_ms: int, *, others_percent: float, input_ms: int) -> bool:
        """Whether the machine is in use.

        Args:
            now_ms: the time.
            others_percent: processor time that programs other than ours took since the last look.
            input_ms: when somebody last typed in a terminal; 0 if nobody is logged in.
        """
        used_ms = now_ms if others_percent > self._others_percent_max else input_ms
        self._used_ms = max(self._used_ms, used_ms)
        return now_ms - self._used_ms < self._quiet_ms


async def watch_use(pausing: Pausing, clock: Callable[[], int]) -> None:
    """Pause the node while its owner uses the machine, until cancelled."""
    watch, load = IdleWatch(clock()), _Load()
    pausing.set_in_use(True)
    while True:
        await trio.sleep(LOOK_S)
        pausing.set_in_use(
            watch.observe(clock(), others_percent=load.others_percent(), input_ms=_last_input_ms())
        )


class _Load:
    """Processor time that others than this process and its workers take."""

    def __init__(self) -> None:
        self._cores = psutil.cpu_count() or 1
        self._before = self._look()

    def others_percent(self) -> float:
        """Since the last time it was asked, of the whole machine."""
        (at, busy, ours), before = self._look(), self._before
        self._before = at, busy, ours
        elapsed = max(1e-3, at - before[0]) * self._cores
        # A worker that ended took its times along: then ours seem to shrink.
        return 100 * max(0.0, busy - before[1] - max(0.0, ours - before[2])) / elapsed

    def _look(self) -> tuple[float, float, float]:
        times = psutil.cpu_times()
        busy = sum(times) - times.idle - getattr(times, "iowait", 0.0)
        # Guests are counted as users already.
        busy -= getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        node, ours = psutil.Process(), 0.0
        for process in (node, *node.children(recursive=True)):
            try:
                used = process.cpu_times()
            except psutil.Error:
                continue
            ours += used.user + used.system
        return time.monotonic(), busy, ours


def _last_input_ms() -> int:
    latest = 0.0
    for user in psutil.users():
        # What is typed into a terminal touches it; a graphical session has none.
        terminal = Path("/dev") / (user.terminal or "")
        try:
            latest = max(latest, os.stat(terminal).st_atime) if terminal.is_char_device() else latest
        except OSError:
            continue
    return round(latest * 1_000)
