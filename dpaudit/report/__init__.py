"""Reports and verdicts as text, HTML and other formats, written from a run's evidence."""
