"""MEASURE: one pass a step over gradients and parameters, on their device. The `Backend` protocol is the seam."""
