"""Fields as pictures: solver, surrogate and difference."""
