"""The run directory: the one place that knows its file names; reads, writes, verifies."""
