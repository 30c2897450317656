"""Runs side by side, wherever they were made."""
