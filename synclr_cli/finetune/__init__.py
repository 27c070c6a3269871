"""The whole backbone trained on labelled pictures."""
