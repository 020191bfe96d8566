"""Networks and their numbers: what a pass over the layers computes at a point, on NumPy or CuPy."""
