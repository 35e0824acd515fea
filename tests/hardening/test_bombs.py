"""Msgpack that claims, or nests, far more than it has."""

from __future__ import annotations

import tracemalloc

import pytest

from p2p_node.core.keyring import RealCrypto
from protocols.envelope import open_envelope
from protocols.errors import PeerFault

MEMORY_BYTES_MAX = 4 << 20

DEEP = b"\x91" * 500_000
WIDE = b"\x96" + b"\xdd\xff\xff\xff\xff" * 6 + b"\xdf\xff\xff\xff\xff" * 1_000
LONG = b"\x96\xdb\xff\xff\xff\xff" + bytes(1_000) + b"\xc6\xff\xff\xff\xff"


@pytest.mark.parametrize("bomb", [DEEP, WIDE, LONG], ids=["deep", "wide", "long"])
def test_a_msgpack_bomb_is_refused_and_takes_no_memory(bomb: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(PeerFault):
            open_envelope(bomb, network="test", crypto=RealCrypto())
        assert tracemalloc.get_traced_memory()[1] < MEMORY_BYTES_MAX
    finally:
        tracemalloc.stop()
