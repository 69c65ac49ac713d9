"""What people read: HTML and text made from a run's evidence."""
