"""The CPU backend: a plan to Python source for Numba, and calls of what became of it."""
