"""The run directory: names of its files, and reading, writing and verifying them."""
