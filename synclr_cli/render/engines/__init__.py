"""Text-to-image models, interchangeable."""
