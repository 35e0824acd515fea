"""Reaching and being reached through a relay: the two ends' side of circuit relay v2.

A peer that can't be reached keeps a reservation or two with peers that it is linked to and that volunteer; it
is then at `<relay's address>/p2p-circuit/p2p/<its id>`. A relayed connection is made like any other, Noise
and Yamux, with a stream through the relay in the place of a socket: the relay can't pose as either end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import structlog
import trio
from libp2p.abc import INetStream, IRawConnection
from libp2p.connection_types import ConnectionType
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.swarm import Swarm
from libp2p.relay.circuit_v2.pb import circuit_pb2
from multiaddr.multiaddr import Multiaddr

from p2p_node.network.dialplan import CIRCUIT, peer_of
from p2p_node.network.libp2p.circuitwire import (
    HOP,
    CircuitSocket,
    HopMessage,
    StopMessage,
    read_message,
    write_message,
)
from p2p_node.network.libp2p.keys import key_of, peer_id_of
from p2p_node.network.libp2p.mends import MendedSwarm
from p2p_node.network.libp2p.preshared import ProtectedConnection
from p2p_node.network.libp2p.relaying import RelayOwner, is_relayed
from p2p_node.network.port import DialFailed, PeerKey
from p2p_node.network.shielding import last_words
from protocols.identity import peer_id, short_id

__all__ = ["CircuitOwner", "Circuits"]

log = structlog.get_logger(__name__)

RELAYS_WANTED = 2
ROUND_S = 1.0
ASKED_AGAIN_S = 60.0
"""A peer that doesn't relay for us isn't asked again for so long."""

RENEWED_S = 1_800.0
UPGRADES_MAX = 16
"""Inbound circuits whose handshake isn't done."""


class CircuitOwner(RelayOwner, Protocol):
    """What circuits ask of the network they belong to."""

    local_key: PeerKey

    def linked_addresses(self) -> dict[PeerKey, str]:
        """Where each linked peer can be dialled."""
        ...

    async def dial(self, address: str) -> PeerKey:
        """Connect, or find the connection that is there."""
        ...


class Circuits:
    """Our reservations, and the connections that come and go through relays."""

    def __init__(self, owner: CircuitOwner, swarm: MendedSwarm, *, is_wanted: Callable[[], bool]) -> None:
        self._owner, self._swarm, self._is_wanted = owner, swarm, is_wanted
        self._reserved: dict[PeerKey, tuple[SwarmConn, float]] = {}
        self._asked_at: dict[PeerKey, float] = {}
        self._upgrading = 0

    # --- Being reached -------------------------------------------------------------------------

    @property
    def addresses(self) -> list[str]:
        """Where we are reached through relays now."""
        there = self._owner.linked_addresses()
        return [
            f"{there[key]}/{CIRCUIT}/p2p/{peer_id(self._owner.local_key)}"
            for key, (connection, _) in self._reserved.items()
            if there.get(key) and not connection.is_closed
        ]

    async def keep_reserved(self) -> None:
        """Hold reservations for as long as they are wanted."""
        while True:
            if self._is_wanted():
                await self._reserve_missing()
            else:
                self._reserved.clear()
            await trio.sleep(ROUND_S)

    async def _reserve_missing(self) -> None:
        now = trio.current_time()
        self._reserved = {
            key: (connection, at)
            for key, (connection, at) in self._reserved.items()
            if not connection.is_closed and now - at < RENEWED_S
        }
        there = self._owner.linked_addresses()
        # Whoever went may come back as a volunteer.
        self._asked_at = {key: at for key, at in self._asked_at.items() if key in there}
        for key in there:
            connection = self._owner.connection_to(key)
            if len(self._reserved) >= RELAYS_WANTED:
                return
            if key in self._reserved or connection is None or is_relayed(connection):
                continue
            if now - self._asked_at.get(key, -ASKED_AGAIN_S) < ASKED_AGAIN_S:
                continue
            self._asked_at[key] = now
            try:
                await self._ask(connection, HopMessage(type=HopMessage.RESERVE))
            except Exception as error:
                # libp2p raises a dozen unrelated types for "it doesn't speak that".
                log.debug("no reservation", relay=short_id(key), why=f"{type(error).__name__}: {error}"[:200])
                continue
            self._reserved[key] = connection, now
            log.info("reached through a relay", relay=short_id(key))

    async def _ask(self, connection: SwarmConn, message: object) -> None:
        """Ask a relay for something, and end the stream.

        Raises:
            DialFailed: it refuses, or doesn't answer.
        """
        stream = await self._owner.open_stream(connection, HOP)
        try:
            await _asked(stream, message)
        finally:
            with last_words(1):
                await stream.reset()

    async def serve(self, stream: INetStream) -> None:
        """Take one circuit that a relay brings; stays as long as it lasts."""
        relay = key_of(stream.muxed_conn.peer_id)
        asked = await read_message(stream, StopMessage)
        reserved = self._reserved.get(relay) if relay is not None else None
        status = circuit_pb2.OK
        if asked.type != StopMessage.CONNECT:
            status = circuit_pb2.UNEXPECTED_MESSAGE
        elif reserved is None or reserved[0] is not getattr(stream, "swarm_conn", None):
            status = circuit_pb2.PERMISSION_DENIED
        elif self._upgrading >= UPGRADES_MAX:
            status = circuit_pb2.RESOURCE_LIMIT_EXCEEDED
        await write_message(stream, StopMessage(type=StopMessage.STATUS, status=status))
        if status != circuit_pb2.OK or relay is None:
            await stream.reset()
            return
        way = Multiaddr(f"{self._owner.linked_addresses().get(relay) or f'/p2p/{peer_id(relay)}'}/{CIRCUIT}")
        self._upgrading += 1
        try:
            raw = _raw_connection(stream, way, is_initiator=False)
            # Not the mended one, which stays until the connection closes: below, we do.
            muxed = await Swarm.upgrade_inbound_raw_conn(self._swarm, raw, way)
        finally:
            self._upgrading -= 1
        for connection in list(self._swarm.connections.get(muxed.peer_id, [])):
            if isinstance(connection, SwarmConn) and connection.muxed_conn is muxed:
                await connection.event_closed.wait()

    # --- Reaching ------------------------------------------------------------------------------

    async def dial(self, address: str) -> None:
        """Connect to the peer that a circuit address ends in.

        Raises:
            DialFailed: the relay isn't there, doesn't relay, or the peer isn't with it.
        """
        relay_address, _, _ = address.partition(f"/{CIRCUIT}/")
        relay = peer_of(relay_address)
        target = peer_id_of(peer_of(address))
        if self._owner.connection_to(relay) is None:
            await self._owner.dial(relay_address)
        connection = self._owner.connection_to(relay)
        if connection is None or is_relayed(connection):
            raise DialFailed(f"no direct connection to the relay {peer_id(relay)}")
        stream = await self._owner.open_stream(connection, HOP)
        try:
            peer = circuit_pb2.PeerId(id=target.to_bytes())
            await _asked(stream, HopMessage(type=HopMessage.CONNECT, peer=peer))
            raw = _raw_connection(stream, Multiaddr(f"{relay_address}/{CIRCUIT}"), is_initiator=True)
            if self._swarm.psk is not None:
                raw = ProtectedConnection(raw, self._swarm.psk)
            await self._swarm.upgrade_outbound_raw_conn(raw, target)
        except BaseException:
            with last_words(1):
                await stream.reset()
            raise


async def _asked(stream: INetStream, message: object) -> None:
    await write_message(stream, message)
    answer = await read_message(stream, HopMessage)
    if answer.type != HopMessage.STATUS or answer.status != circuit_pb2.OK:
        raise DialFailed(f"relay refused: {circuit_pb2.Status.Name(answer.status)}")


def _raw_connection(stream: INetStream, way: Multiaddr, *, is_initiator: bool) -> IRawConnection:
    return RawConnection(
        CircuitSocket(stream), is_initiator, connection_type=ConnectionType.RELAYED, addresses=[way]
    )
