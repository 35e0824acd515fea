"""A deterministic world for `NodeCore`: a heap of events instead of a network, seeds instead of luck."""
