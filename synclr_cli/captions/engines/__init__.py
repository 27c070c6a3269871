"""Language models, interchangeable."""
