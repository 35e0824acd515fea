"""`p2p-node blob …`."""

from __future__ import annotations

import click

from p2p_node.cli import LazyCommand, LazyGroup

__all__ = ["blob"]

COMMANDS = {
    "add": LazyCommand("p2p_node.cli.blob_move:add", "Hand a file to the node; prints its name."),
    "get": LazyCommand("p2p_node.cli.blob_move:get", "Write a blob to a file, from peers if need be."),
    "list": LazyCommand("p2p_node.cli.blob_keep:list_blobs", "List the blobs that the node keeps."),
    "pin": LazyCommand("p2p_node.cli.blob_keep:pin", "Keep a blob until it is unpinned."),
    "unpin": LazyCommand("p2p_node.cli.blob_keep:unpin", "Let a blob go when room is needed."),
    "rm": LazyCommand("p2p_node.cli.blob_keep:remove", "Throw a blob away."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, short_help="Large content, named by its hash.")
def blob() -> None:
    """Large content that jobs read and leave, named by its hash.

    A blob's name is <digest in hex>:<size in bytes>. Whoever knows it can have the blob from any peer that
    keeps it.
    """
