"""`synclr push`: a folder to the Hugging Face hub."""
