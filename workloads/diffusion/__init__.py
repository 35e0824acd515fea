"""The workload diffusion.sample: pictures drawn out of noise, step by step."""
