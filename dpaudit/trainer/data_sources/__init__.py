"""Data of the user as a source of batches: columns, records by index, and DataLoaders.

Poisson sampling draws records by their positions. So a source has a number of records, and
returns the batch of any positions, also of none. Which records join a step depends on the key
and the step alone, however they are loaded.
"""
