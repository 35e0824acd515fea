"""Builds the libp2p host: TCP, Noise and Yamux, and nothing else.

Upstream's `new_host()` also accepts plaintext, TLS and mplex, and would dial peers by itself. Here no
connection is unauthenticated, and only `upkeep` and the runtime dial.
"""

from __future__ import annotations

import logging
from collections import OrderedDict

from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.ping import ID as PING_ID
from libp2p.host.ping import PingService
from libp2p.identity.identify.identify import ID as IDENTIFY_ID
from libp2p.identity.identify.identify import identify_handler_for
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.tcp.tcp import TCP
from libp2p.transport.upgrader import TransportUpgrader

from p2p_node.network.access import EVERYBODY, PeerAccess
from p2p_node.network.libp2p import mends, preshared, speed
from p2p_node.network.libp2p.mends import MendedHost, MendedSwarm
from protocols.limits import CONNECTIONS_MAX, CONNECTIONS_OUTBOUND_RESERVED, CONNECTIONS_PER_PEER_MAX

__all__ = ["build_host"]

UPGRADE_S = 5.0
STREAM_OPEN_S = 5.0
_SEED_BYTES = 32


def build_host(
    seed: bytes, *, access: PeerAccess = EVERYBODY, network_key: bytes | None = None
) -> tuple[MendedHost, MendedSwarm]:
    """A host that isn't running yet.

    Args:
        seed: of its Ed25519 identity, 32 bytes.
        access: who may connect.
        network_key: of a private network, 32 bytes; None for a public one.

    Raises:
        ValueError: the seed isn't 32 bytes.
    """
    if len(seed) != _SEED_BYTES:
        raise ValueError(f"an Ed25519 seed has {_SEED_BYTES} bytes, got {len(seed)}")
    mends.install()
    speed.install()
    preshared.install()
    # Whatever strangers make go wrong, upstream logs as an error, some of it with a traceback.
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    key_pair = create_new_key_pair(seed)
    noise = NoiseTransport(key_pair, noise_privkey=create_new_noise_key_pair().private_key)
    own_id = ID.from_pubkey(key_pair.public_key)
    peerstore = PeerStore()
    peerstore.add_key_pair(own_id, key_pair)
    swarm = MendedSwarm(
        own_id,
        peerstore,
        TransportUpgrader({NOISE_ID: noise}, {TProtocol(YAMUX_ID): Yamux}),
        [TCP()],
        RetryConfig(max_retries=0),
        ConnectionConfig(
            max_connections=CONNECTIONS_MAX,
            max_connections_per_peer=CONNECTIONS_PER_PEER_MAX,
            # Upstream admits as many inbound connections as these two leave over: strangers who take them
            # all can't keep us from dialling out.
            min_connections=CONNECTIONS_OUTBOUND_RESERVED,
            low_watermark=CONNECTIONS_OUTBOUND_RESERVED,
            high_watermark=CONNECTIONS_MAX,
            inbound_upgrade_timeout=UPGRADE_S,
            outbound_upgrade_timeout=UPGRADE_S,
            inbound_stream_protocol_negotiation_timeout=STREAM_OPEN_S,
            outbound_stream_protocol_negotiation_timeout=STREAM_OPEN_S,
        ),
    )
    swarm.access = access
    swarm.psk = None if network_key is None else network_key.hex()
    host = MendedHost(swarm, disable_identify_address_discovery=True)
    # Without identify push: nobody tells us what another peer speaks.
    host.multiselect.handlers = OrderedDict(
        {
            IDENTIFY_ID: identify_handler_for(host, use_varint_format=True),
            PING_ID: PingService(host).handle_ping,
        }
    )
    return host, swarm
