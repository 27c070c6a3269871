"""The whole backbone trained on labelled images."""
