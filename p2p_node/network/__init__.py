"""The peer's network: a port, real libp2p behind it, and a network in memory for tests."""
