"""The workload render.trace: a picture of a small scene, tile by tile."""
