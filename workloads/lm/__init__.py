"""The workload lm.generate."""
