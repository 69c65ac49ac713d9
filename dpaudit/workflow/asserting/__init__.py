"""Why a test of privacy fails, in words: one file an assertion of the pytest plugin.

Each function returns an empty text where the assertion holds, and never on NaN, on nothing,
or on evidence that cannot be told.
"""
