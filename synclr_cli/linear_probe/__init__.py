"""A linear classifier on frozen features."""
