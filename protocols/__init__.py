"""What peers say, and the rules by which they hear it.

Pure: bytes and integers in, bytes and decisions out. Nothing here waits, reads a clock, draws a
random number or touches the network, so the same code runs in the simulator and in a real peer.
"""
