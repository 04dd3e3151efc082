"""Building blocks of the networks, and their implementations for a CPU."""
