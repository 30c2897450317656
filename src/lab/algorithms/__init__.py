"""Numerical algorithms that are not trained: what is left of them is their answer, not weights."""
