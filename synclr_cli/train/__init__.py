"""Images -> backbone."""
