"""Relaying for peers that can't be reached: the volunteer's side of circuit relay v2.

A peer reserves for itself, over a link, and its reservation ends with that link. Whoever is linked to us may
then ask for a circuit to it: two streams of which each gets what the other sends. What passes is enciphered
between the two ends, so that we can neither read nor change it, and is bounded in rate, number and time.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Protocol

import structlog
import trio
from libp2p.abc import INetStream
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb import circuit_pb2

from p2p_node.network.libp2p.circuitwire import (
    STOP,
    HopMessage,
    StopMessage,
    read_message,
    write_message,
)
from p2p_node.network.libp2p.keys import key_of
from p2p_node.network.port import DialFailed, PeerKey
from p2p_node.network.relaypolicy import RelayPolicy
from p2p_node.network.shielding import last_words
from protocols.identity import short_id

__all__ = ["Relay", "RelayOwner", "is_relayed"]

log = structlog.get_logger(__name__)

RESERVATION_S = 3_600
CIRCUITS_PER_PEER_MAX = 16
"""Of one peer, at either end: nobody may use up a volunteer alone."""

_READ_BYTES = 64 * 1024
_RESET_S = 1.0


class RelayOwner(Protocol):
    """What relaying asks of the network it belongs to."""

    def connection_to(self, peer: PeerKey) -> SwarmConn | None:
        """An open connection under the link to this peer."""
        ...

    async def open_stream(self, connection: SwarmConn, protocol: str) -> INetStream:
        """Open a stream on this very connection."""
        ...


def is_relayed(connection: SwarmConn | None) -> bool:
    """Whether a connection passes through a relay."""
    if connection is None:
        return False
    return any("/p2p-circuit" in str(address) for address in connection.get_transport_addresses())


class Relay:
    """One volunteer."""

    def __init__(self, owner: RelayOwner, policy: RelayPolicy) -> None:
        self._owner, self._policy = owner, policy
        self._reserved: dict[PeerKey, SwarmConn] = {}
        self._circuits: Counter[PeerKey] = Counter()
        self.circuits = 0
        """Under way."""

    @property
    def reserved(self) -> frozenset[PeerKey]:
        """Who can be reached through us now."""
        for key, connection in list(self._reserved.items()):
            if connection.is_closed:
                del self._reserved[key]
        return frozenset(self._reserved)

    async def serve(self, stream: INetStream) -> None:
        """Serve one stream of the hop protocol: one reservation, or one circuit."""
        caller = key_of(stream.muxed_conn.peer_id)
        connection: SwarmConn | None = getattr(stream, "swarm_conn", None)
        asked = await read_message(stream, HopMessage)
        # A circuit through a circuit would let strangers chain volunteers.
        if caller is None or self._owner.connection_to(caller) is None or is_relayed(connection):
            await _answer(stream, circuit_pb2.PERMISSION_DENIED)
        elif asked.type == HopMessage.RESERVE and connection is not None:
            await self._reserve(stream, caller, connection)
        elif asked.type == HopMessage.CONNECT:
            await self._connect(stream, caller, ID(asked.peer.id))
        else:
            await _answer(stream, circuit_pb2.UNEXPECTED_MESSAGE)

    async def _reserve(self, stream: INetStream, caller: PeerKey, connection: SwarmConn) -> None:
        # Whatever peer the message names: nobody reserves in another's name.
        if caller not in self.reserved and len(self._reserved) >= self._policy.max_reservations:
            await _answer(stream, circuit_pb2.RESERVATION_REFUSED)
            return
        self._reserved[caller] = connection
        log.debug("relay reserved", peer=short_id(caller))
        await _answer(stream, circuit_pb2.OK, reserved=True)

    async def _connect(self, stream: INetStream, caller: PeerKey, target_id: ID) -> None:
        target = key_of(target_id)
        if target is None or target not in self.reserved:
            await _answer(stream, circuit_pb2.NO_RESERVATION)
            return
        if self.circuits >= self._policy.max_circuits or any(
            self._circuits[end] >= CIRCUITS_PER_PEER_MAX for end in (caller, target)
        ):
            await _answer(stream, circuit_pb2.RESOURCE_LIMIT_EXCEEDED)
            return
        self.circuits += 1
        self._circuits.update((caller, target))
        try:
            await self._join(stream, stream.muxed_conn.peer_id, target)
        finally:
            self.circuits -= 1
            self._circuits.subtract((caller, target))
            self._circuits += Counter()  # Forgets who has none.

    async def _join(self, near: INetStream, caller: ID, target: PeerKey) -> None:
        far: INetStream | None = None
        try:
            far = await self._owner.open_stream(self._reserved[target], STOP)
            await write_message(
                far, StopMessage(type=StopMessage.CONNECT, peer=circuit_pb2.PeerId(id=caller.to_bytes()))
            )
            answer = await read_message(far, StopMessage)
            if answer.status != circuit_pb2.OK:
                raise DialFailed(f"{short_id(target)} refused a circuit: status {answer.status}")
            await _answer(near, circuit_pb2.OK)
            await self._pass_on(near, far)
        except Exception as error:
            # libp2p raises a dozen unrelated types for "the stream is gone".
            log.debug("circuit ended", to=short_id(target), why=f"{type(error).__name__}: {error}"[:200])
            await _answer(near, circuit_pb2.CONNECTION_FAILED, quietly=True)
        finally:
            with last_words(_RESET_S):
                for stream in (near, far):
                    if stream is not None:
                        await stream.reset()

    async def _pass_on(self, near: INetStream, far: INetStream) -> None:
        """Until one end is over, or the time is."""
        pace = _Pace(self._policy.bytes_per_s)
        with trio.move_on_after(self._policy.circuit_s):
            async with trio.open_nursery() as nursery:

                async def copy(source: INetStream, sink: INetStream) -> None:
                    try:
                        while data := await source.read(_READ_BYTES):
                            await pace.wait_for(len(data))
                            await sink.write(data)
                    except Exception as error:
                        log.debug("circuit broke", why=repr(error)[:200])
                    nursery.cancel_scope.cancel()

                nursery.start_soon(copy, near, far)
                nursery.start_soon(copy, far, near)


class _Pace:
    """Lets so many bytes a second pass, with what a quarter of a second holds as slack."""

    def __init__(self, bytes_per_s: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at = trio.current_time()

    async def wait_for(self, size: int) -> None:
        now = trio.current_time()
        self._free_at = max(self._free_at, now - 0.25) + size / self._bytes_per_s
        await trio.sleep(max(0.0, self._free_at - now))


async def _answer(stream: INetStream, status: int, *, reserved: bool = False, quietly: bool = False) -> None:
    message = HopMessage(type=HopMessage.STATUS, status=status)
    if reserved:
        # For other implementations; here it lasts as long as the link.
        message.reservation.expire = int(time.time()) + RESERVATION_S
    try:
        await write_message(stream, message)
    except Exception:
        if not quietly:
            raise
