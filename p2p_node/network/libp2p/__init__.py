"""The network port over py-libp2p. Importing this package imports libp2p, which takes about a second."""

from p2p_node.network.libp2p.opening import open_network

__all__ = ["open_network"]
