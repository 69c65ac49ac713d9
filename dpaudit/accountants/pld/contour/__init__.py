"""Contour integrals of characteristic functions: delta and epsilon of compositions."""
