"""Pictures -> backbone (section 3.3 of the paper)."""
