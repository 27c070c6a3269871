"""Words -> captions (section 3.1 of the paper)."""
