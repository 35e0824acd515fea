"""Height maps out of noise in a few steps, by consistency models that a program describes."""
