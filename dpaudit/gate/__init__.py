"""Policies and verdicts: pure functions of evidence that workflow/gate has read and verified."""
