"""Claims: one file per experiment, its predict/measure pairs."""
