"""Settings of a training run, early stopping on refutation, completion, and accuracy."""
