"""Pictures -> backbone."""
