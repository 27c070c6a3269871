"""Words -> captions."""
