"""p2p_node."""
