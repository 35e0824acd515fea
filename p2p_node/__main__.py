"""`python -m p2p_node` is the program `p2p-node`."""

from p2p_node.cli import main

main()
