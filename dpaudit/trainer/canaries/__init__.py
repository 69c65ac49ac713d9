"""Canaries of a training run: their inclusion bits, directions, files and observations."""
