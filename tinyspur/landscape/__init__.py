"""Landscapes: the risk at the points of planes and lines through parameter space (Li et al. 2018).

`planes` says where, along the directions of `directions`; `scan` evaluates the risk there and
returns a `Landscape`, see `risks`. What it shows is evidence: a scan samples, it proves nothing.
"""
