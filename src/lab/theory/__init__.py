"""Closed forms: one subject a file, one function per numbered equation."""
