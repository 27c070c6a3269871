"""Captions -> pictures."""
