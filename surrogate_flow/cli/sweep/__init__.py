"""Many models on one ensemble: what is tried, where, and what came of it."""
