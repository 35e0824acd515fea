"""What p2p-node costs, measured against a baseline of the same run: ``python -m benchmarks``."""
