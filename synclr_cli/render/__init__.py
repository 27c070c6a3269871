"""Captions -> images."""
