"""LightningModules: one per loss."""
