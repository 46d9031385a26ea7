"""What was experienced, read as sequences to unroll over."""
