"""What the networks are made of, and how a CPU computes it."""
