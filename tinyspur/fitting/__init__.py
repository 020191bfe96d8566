"""Affine fits, which the constructions need, and training."""
