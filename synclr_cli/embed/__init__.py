"""`synclr embed`: the features of images, for search and clustering."""
