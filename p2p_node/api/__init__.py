"""The local HTTP API of a running node; `docs/api.md` describes it to those who call it."""

from p2p_node.api.server import serve

__all__ = ["serve"]
