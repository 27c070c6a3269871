"""What two or more of the torch stages share."""
