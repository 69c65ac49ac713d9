"""Data of reports and comparisons, and export to MLflow and TensorBoard."""
