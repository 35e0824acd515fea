"""The stores of a swarm's peers side by side: whether all that was signed is with whom it is for."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from p2p_node.core.keyring import RealCrypto
from p2p_node.swarm import Swarm, SwarmPeer
from protocols.digest import DIGEST_BYTES
from protocols.envelope import open_envelope
from protocols.identity import peer_key
from protocols.messages import Voucher

__all__ = ["rows_of", "unsettled"]


def rows_of(datadir: Path, table: str) -> dict[bytes, bytes]:
    """A table of a node's store, of a node that may be running."""
    with closing(sqlite3.connect(f"file:{datadir / 'node.sqlite'}?mode=ro", uri=True)) as store:
        return dict(store.execute(f"SELECT key, value FROM {table}").fetchall())


def _vouchers(peer: SwarmPeer, network: str) -> dict[tuple[bytes, bytes], tuple[bytes, Voucher]]:
    """By award and payee: who signed it, and what it says."""
    crypto = RealCrypto()
    found = {}
    for key, raw in rows_of(peer.datadir, "vouchers").items():
        message = open_envelope(raw, network=network, crypto=crypto, expect=Voucher)
        found[(key[:DIGEST_BYTES], key[DIGEST_BYTES:])] = (message.signer, message.body)
    return found


def unsettled(swarm: Swarm) -> Iterator[str]:
    """Every voucher that was signed by one peer and isn't with the other, in words.

    Peers that are down are asked by their stores as well; what is still on its way counts.
    """
    books = {peer_key(peer.peer_id): _vouchers(peer, swarm.network) for peer in swarm.peers}
    for payer, book in books.items():
        for (award, payee), (signer, voucher) in book.items():
            if signer != payer or payee not in books:
                continue
            held = books[payee].get((award, payee))
            if held is None:
                yield f"voucher {award.hex()[:8]} never reached its payee"
            elif held[1] != voucher:
                yield f"voucher {award.hex()[:8]}: its payee has {held[1].sequence}, not {voucher.sequence}"
    for payee, book in books.items():
        for (award, to), (signer, _) in book.items():
            if to == payee and signer in books and (award, to) not in books[signer]:
                yield f"voucher {award.hex()[:8]} is unknown to its payer"
