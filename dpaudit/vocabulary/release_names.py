"""What releases are called in a ledger: written by the trainer, read by everyone else."""

GRADIENT_SUM = "gradient sum"
"""The noisy sum of clipped gradients of one training step."""

RECORD_COUNT = "record count"
"""The noisy number of records, from which an expected batch size was made."""
