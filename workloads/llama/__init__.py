"""A decoder of the Llama family: configuration, strict weights, native forward pass."""
