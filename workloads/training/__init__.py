"""Training a small model so that anyone can check any part of the run."""
