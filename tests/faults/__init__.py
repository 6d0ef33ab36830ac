"""Studies into which faults are injected, from a seed, and what must hold after each."""
