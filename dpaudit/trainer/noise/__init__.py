"""Noise of a private step: keystreams, Gaussian draws, noise on a grid, prefetching."""
