"""Load policies, verify evidence, evaluate runs, and record verdicts and baselines."""
