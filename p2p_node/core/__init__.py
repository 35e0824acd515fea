"""The pure core of one peer: every machine it is made of, and `NodeCore`, which composes them.

Nothing here waits, reads a clock, draws a random number or does I/O; the runtime does.
"""
