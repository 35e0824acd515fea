"""A private network: every byte between its peers, the first included, is enciphered with a key they share.

Who hasn't the key can't get as far as the handshake: it learns neither who we are nor what we speak, and
whatever it sends reads as noise. Between who has it, Noise still proves who is who and keeps others from
reading.
"""

from __future__ import annotations

from typing import Any

import libp2p.network.swarm as swarm_module
from Crypto.Cipher import Salsa20
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.security.pnet.psk_conn import PskConn

__all__ = ["ProtectedConnection", "install"]

_NONCE_BYTES = 8


class ProtectedConnection(PskConn):
    """Upstream's, mended.

    Fault: it isn't initialised as the connection it is, so that asking for its address or cutting its socket
    fails; and a nonce that arrives in two pieces ends it.
    """

    def __init__(self, conn: Any, psk: str) -> None:
        PskConn.__init__(self, conn, psk)
        RawConnection.__init__(
            self, conn.stream, conn.is_initiator, conn.get_connection_type(), conn._actual_addresses
        )

    async def read(self, n: int | None = None) -> bytes:
        """Read and decipher up to ``n`` bytes."""
        if self.read_cipher is None:
            nonce = b""
            while len(nonce) < _NONCE_BYTES:
                part = await self._conn.read(_NONCE_BYTES - len(nonce))
                if not part:
                    return b""
                nonce += part
            self.read_cipher = Salsa20.new(key=self._psk, nonce=nonce)
        return await super().read(n)


def install() -> None:
    """Have the swarm use it. Idempotent; without a key upstream never does."""
    swarm_module.new_protected_conn = ProtectedConnection  # type: ignore[attr-defined]
