"""Asking peers to dial us back, and dialling back for them: what tells whether a peer can be reached.

A request names ports and no address: we dial the address that the asker's own connection comes from, so that
nobody can have us connect to a third party, and it costs the asker more than us. Each address is served
seldom, and a few at once.

A request is a count of at most four and that many ports, two bytes each, big-endian. The answer is one byte
per port, a `Verdict`, then the length of the address that was dialled, and it, in ASCII.
"""

from __future__ import annotations

import ipaddress
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
import trio
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.swarm import Swarm
from multiaddr.multiaddr import Multiaddr

from p2p_node.network.libp2p.keys import peer_id_of
from p2p_node.network.libp2p.mends import close_connection
from p2p_node.network.libp2p.relaying import RelayOwner, is_relayed
from p2p_node.network.port import BulkStream, PeerKey, StreamBroken
from p2p_node.network.reachability import DialledBack, Verdict
from p2p_node.network.shielding import last_words
from protocols.errors import Malformed
from protocols.identity import short_id

__all__ = ["PROTOCOL", "DialBack"]

log = structlog.get_logger(__name__)

PROTOCOL = "dialback/1"
PORTS_MAX = 4
DIAL_S = 5.0
ANSWER_S = 20.0
SERVED_AGAIN_MS = 20_000
"""One address is dialled back for no oftener."""

SERVED_AT_ONCE_MAX = 4
_REMEMBERED_MAX = 1_024
_ADDRESS_BYTES_MAX = 45


class DialBack:
    """Both sides."""

    def __init__(self, owner: RelayOwner, swarm: Swarm, clock: Callable[[], int]) -> None:
        self._owner, self._swarm, self._clock = owner, swarm, clock
        self._served_ms: OrderedDict[str, int] = OrderedDict()
        self._serving = 0

    # --- For others ----------------------------------------------------------------------------

    async def serve(self, stream: BulkStream) -> None:
        """Serve one request.

        Raises:
            Malformed: it breaks the format.
            StreamBroken: the asker is gone, or too slow.
        """
        with _in_time(stream.peer):
            ports = await _read_ports(stream)
            host = _observed_host(self._owner.connection_to(stream.peer))
            if host is None or not self._is_admitted(host):
                await stream.send(bytes([Verdict.REFUSED] * len(ports)) + _packed(""))
                return
            self._serving += 1
            try:
                verdicts = [await self._dial(stream.peer, host, port) for port in ports]
            finally:
                self._serving -= 1
            await stream.send(bytes(verdicts) + _packed(host))

    def _is_admitted(self, host: str) -> bool:
        now_ms = self._clock()
        if self._serving >= SERVED_AT_ONCE_MAX:
            return False
        if now_ms - self._served_ms.get(host, now_ms - SERVED_AGAIN_MS) < SERVED_AGAIN_MS:
            return False
        self._served_ms[host] = now_ms
        self._served_ms.move_to_end(host)
        if len(self._served_ms) > _REMEMBERED_MAX:
            self._served_ms.popitem(last=False)
        return True

    async def _dial(self, peer: PeerKey, host: str, port: int) -> Verdict:
        family = "ip6" if ":" in host else "ip4"
        connection = None
        try:
            with trio.fail_after(DIAL_S):
                address = Multiaddr(f"/{family}/{host}/tcp/{port}")
                connection = await self._swarm.dial_addr(address, peer_id_of(peer))
        except Exception as error:
            # libp2p wraps refused sockets, failed handshakes and wrong identities in many ways.
            log.debug("dialled back in vain", peer=short_id(peer), port=port, why=repr(error)[:200])
            return Verdict.UNREACHABLE
        finally:
            if isinstance(connection, SwarmConn):
                with last_words(DIAL_S):
                    await close_connection(connection)
        return Verdict.REACHABLE

    # --- For ourselves -------------------------------------------------------------------------

    async def ask(self, stream: BulkStream, ports: list[int]) -> list[DialledBack]:
        """Have a peer dial these ports of ours, at most `PORTS_MAX`.

        Raises:
            StreamBroken: it is gone, too slow, or answers with junk.
        """
        with _in_time(stream.peer):
            await stream.send(bytes([len(ports)]) + b"".join(struct.pack(">H", port) for port in ports))
            answer = b""
            while len(answer) < len(ports) + 1 or len(answer) < len(ports) + 1 + answer[len(ports)]:
                if len(answer) > len(ports) + 1 + _ADDRESS_BYTES_MAX:
                    break
                answer += await stream.receive()
        verdicts, rest = answer[: len(ports)], answer[len(ports) + 1 :]
        try:
            host = str(ipaddress.ip_address(rest.decode("ascii"))) if rest else ""
            return [
                DialledBack(stream.peer, host, port, Verdict(verdict))
                for port, verdict in zip(ports, verdicts, strict=True)
            ]
        except ValueError as error:
            raise StreamBroken(f"{short_id(stream.peer)} answered with junk: {error}") from error


@contextmanager
def _in_time(peer: PeerKey) -> Iterator[None]:
    with trio.move_on_after(ANSWER_S) as patience:
        yield
    if patience.cancelled_caught:
        raise StreamBroken(f"{short_id(peer)} took longer than {ANSWER_S:g} s")


async def _read_ports(stream: BulkStream) -> list[int]:
    raw = await stream.receive()
    while len(raw) < 1 + 2 * raw[0] <= 1 + 2 * PORTS_MAX:
        raw += await stream.receive()
    if not 1 <= raw[0] <= PORTS_MAX or len(raw) != 1 + 2 * raw[0]:
        raise Malformed(f"a dial-back names 1 to {PORTS_MAX} ports, got {raw[0]} in {len(raw)} bytes")
    ports = [port for (port,) in struct.iter_unpack(">H", raw[1:])]
    if 0 in ports:
        raise Malformed("port 0 can't be dialled")
    return ports


def _observed_host(connection: SwarmConn | None) -> str | None:
    """The IP address that a peer's own connection comes from."""
    if connection is None or is_relayed(connection):
        return None
    for address in connection.get_transport_addresses():
        _, family, host, *_ = str(address).split("/")
        if family in ("ip4", "ip6"):
            return host
    return None


def _packed(host: str) -> bytes:
    return bytes([len(host)]) + host.encode("ascii")
