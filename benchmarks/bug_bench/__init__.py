"""A bench of real faults of public DP trainers and accountants: ``python benchmarks/bug_bench``."""
