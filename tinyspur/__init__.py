"""tinyspur: build, inspect and certify spurious local minima of neural networks."""
