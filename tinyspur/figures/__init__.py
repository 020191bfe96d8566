"""Figures of matrices, points, landscapes and studies: they draw what they are given."""
