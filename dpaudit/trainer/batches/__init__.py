"""Batches of a private step: samplers that draw records, and groups of rows per record or user."""
