"""Privacy loss distributions: dominating pairs, sampled releases and compositions."""
