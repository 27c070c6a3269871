"""UperNet on the backbone."""
