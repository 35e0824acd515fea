"""The workload linalg.matmul: products of integer matrices."""
