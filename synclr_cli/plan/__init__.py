"""`synclr plan`: what a recipe takes, told before anything starts."""
