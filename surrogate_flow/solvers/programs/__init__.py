"""Programs of any language as solvers: processes, and how their steps come."""
