"""Landscapes: the risk at the points of planes and lines through parameter space."""
