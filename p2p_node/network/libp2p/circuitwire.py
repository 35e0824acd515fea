"""Messages of circuit relay v2, and a relayed stream in the place of a socket.

Wire format: https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md. Of upstream's own parts only
the messages are used: the rest lets anybody reserve in another's name, keeps one circuit per peer, names the
wrong relay in a connection's address, and has no bound on bytes per second (see docs/networking.md).
"""

from __future__ import annotations

from typing import Any

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.relay.circuit_v2.pb import circuit_pb2
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited

from p2p_node.network.port import DialFailed
from p2p_node.network.shielding import last_words

__all__ = ["HOP", "STOP", "CircuitSocket", "HopMessage", "StopMessage", "read_message", "write_message"]

HOP = TProtocol("/libp2p/circuit/relay/0.2.0/hop")
STOP = TProtocol("/libp2p/circuit/relay/0.2.0/stop")
HopMessage: Any = circuit_pb2.HopMessage
StopMessage: Any = circuit_pb2.StopMessage

MESSAGE_S = 10.0
MESSAGE_BYTES_MAX = 4_096
_CLOSE_S = 1.0


async def write_message(stream: INetStream, message: Any) -> None:
    """Write one message, its length first.

    Raises:
        trio.TooSlowError: the peer doesn't take it.
    """
    with trio.fail_after(MESSAGE_S):
        await stream.write(encode_varint_prefixed(message.SerializeToString()))


async def read_message(stream: INetStream, kind: Any) -> Any:
    """Read one message of ``kind``.

    Raises:
        DialFailed: it can't be read, or doesn't come.
    """
    try:
        with trio.fail_after(MESSAGE_S):
            raw = await read_varint_prefixed_bytes_limited(stream, MESSAGE_BYTES_MAX)
        return kind.FromString(raw)
    except trio.TooSlowError:
        raise DialFailed(f"no answer about a circuit within {MESSAGE_S:g} s") from None
    except Exception as error:
        # Protobuf's errors, and a dozen unrelated types for "the stream is gone".
        raise DialFailed(f"no answer about a circuit: {type(error).__name__}: {error}"[:200]) from error


class _Cutter:
    def __init__(self, socket: CircuitSocket) -> None:
        self.close = socket.cut


class CircuitSocket(ReadWriteCloser):
    """A stream through a relay where libp2p expects a TCP stream."""

    def __init__(self, stream: INetStream) -> None:
        self._stream = stream
        self._reading = trio.CancelScope()
        # What `mends` looks for when it cuts a connection off at once.
        self.stream, self.socket = self, _Cutter(self)

    async def read(self, n: int | None = None) -> bytes:
        """Up to ``n`` bytes; nothing at the end."""
        if self._reading.cancel_called:
            return b""
        with trio.CancelScope() as self._reading:
            try:
                return await self._stream.read(n)
            except Exception as error:
                raise ConnectionClosedError(f"circuit ended: {error!r}"[:200], transport="tcp") from error
        return b""

    async def write(self, data: bytes) -> None:
        """All of ``data``."""
        try:
            await self._stream.write(data)
        except Exception as error:
            raise ConnectionClosedError(f"circuit ended: {error!r}"[:200], transport="tcp") from error

    def cut(self) -> None:
        """Wake the reader, at once and for good."""
        self._reading.cancel()

    async def close(self) -> None:
        """End the stream."""
        self.cut()
        with last_words(_CLOSE_S):
            await self._stream.reset()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Nobody knows: that is the relay's."""
        return None
