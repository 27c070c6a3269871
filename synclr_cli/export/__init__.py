"""`synclr export`: a backbone for other libraries."""
