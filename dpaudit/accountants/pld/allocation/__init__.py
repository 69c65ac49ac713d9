"""Random allocation: laws of the likelihood ratio that bound it in the convex order."""
