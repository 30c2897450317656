"""Data modules. What is small lives on the training device; what is synthetic exposes its true parameters."""
