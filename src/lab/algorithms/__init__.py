"""Numerical algorithms that are not trained."""
