"""What all folders share."""
