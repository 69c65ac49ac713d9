"""Policy and verdict: pure functions of evidence that was read elsewhere."""
