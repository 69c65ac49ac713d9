"""Training sessions: settings, ledger, privacy budget, checkpoints and change detection."""
