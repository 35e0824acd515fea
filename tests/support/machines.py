"""Cores with simulated keys that know each other, and what their acts say."""

from __future__ import annotations

import random
from typing import Any

from p2p_node.core.node import Act, NodeCore
from p2p_node.core.outbox import Transmit, message_frame, split_frame
from p2p_node.sim.scenario import sim_capability
from protocols.digest import tagged
from protocols.effects import Send
from protocols.envelope import Signed, open_envelope
from tests.support.builders import CRYPTO, NETWORK, NOW_MS, advert, key, keys

__all__ = ["core", "deliver", "said", "sent", "the"]


def core(
    number: int,
    *,
    knows: tuple[int, ...] = (),
    slots: int = 2,
    price: int = 100,
    serves: bool = True,
) -> NodeCore:
    """Test peer ``number``, with the adverts of others already heard."""
    node = NodeCore(
        keys=keys(number),
        crypto=CRYPTO,
        secret=tagged("p2p-node/test-secret/1", key(number)),
        network=NETWORK,
        capability=sim_capability(price_micros=price, slots=slots, serves=serves),
        jitter=random.Random(number),
    )
    for other in knows:
        node.registry.hear(advert(other), NOW_MS)
    return node


def sent(effects: list[Any], kind: type[Any] | None = None) -> list[Signed[Any]]:
    """The messages in `Send` effects, of one kind if given."""
    messages = [effect.message for effect in effects if isinstance(effect, Send)]
    return [message for message in messages if kind is None or isinstance(message.body, kind)]


def said(acts: list[Act], kind: type[Any] | None = None) -> list[tuple[bytes, Signed[Any]]]:
    """(receiver, message) of the frames in acts, acknowledgements left out."""
    found = []
    for act in acts:
        if not isinstance(act, Transmit):
            continue
        is_ack, raw = split_frame(act.frame)
        if is_ack:
            continue
        message: Signed[Any] = open_envelope(raw, network=NETWORK, crypto=CRYPTO)
        if kind is None or isinstance(message.body, kind):
            found.append((act.peer, message))
    return found


def the(found: list[Any]) -> Any:
    """The only one."""
    [only] = found
    return only


def deliver(node: NodeCore, message: Signed[Any], now_ms: int = NOW_MS) -> list[Act]:
    """Give a node a message on a link from its signer."""
    return node.frame_received(message.signer, message_frame(message.raw), now_ms)
