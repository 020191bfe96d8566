"""What speaks against a local minimum, or for one without proving it."""
