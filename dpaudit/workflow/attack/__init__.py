"""Membership inference attacks on runs, on model files and on data, and their evaluation."""
