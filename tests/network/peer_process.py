"""A peer in a process of its own, to be killed or stopped: prints its address, then answers each frame."""

from __future__ import annotations

import sys

import trio

from p2p_node.network.port import FrameReceived
from tests.network.hosts import network


async def main(number: int, listen: str) -> None:
    async with network(number, listen=[listen]) as peer:
        print(peer.addresses[0], flush=True)
        async for event in peer.events:
            if isinstance(event, FrameReceived):
                await peer.send(event.peer, event.data)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), sys.argv[2])
