"""Peers in other processes: killed without warning, stopped dead, and back again."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from p2p_node.network.libp2p import links
from p2p_node.network.port import FrameReceived, PeerConnected, PeerDisconnected
from tests.network.hosts import free_port, network, next_event

STARTUP_S = 30


@contextmanager
def peer_process(number: int, listen: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running peer and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.network.peer_process", str(number), listen],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


async def test_a_killed_peer_is_missed_and_found_again_when_it_returns() -> None:
    listen = f"/ip4/127.0.0.1/tcp/{free_port()}"
    with peer_process(2, listen) as (process, address):
        async with network(1, bootstrap=[address]) as one:
            peer = (await next_event(one, PeerConnected)).peer
            assert await one.send(peer, b"echo")
            assert (await next_event(one, FrameReceived)).data == b"echo"
            process.kill()
            await next_event(one, PeerDisconnected)
            process.wait()
            with peer_process(2, listen):
                assert (await next_event(one, PeerConnected, within_s=STARTUP_S)).peer == peer
                assert await one.send(peer, b"echo")
                assert (await next_event(one, FrameReceived)).data == b"echo"


async def test_a_stopped_peer_is_missed_and_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "PING_EVERY_S", 0.6)
    monkeypatch.setattr(links, "SILENCE_S", 0.4)
    with peer_process(2, "/ip4/127.0.0.1/tcp/0") as (process, address):
        async with network(1, bootstrap=[address]) as one:
            await next_event(one, PeerConnected)
            process.send_signal(signal.SIGSTOP)
            await next_event(one, PeerDisconnected)
            process.send_signal(signal.SIGCONT)
            await next_event(one, PeerConnected, within_s=STARTUP_S)
