"""What everyone speaks of: frozen types and errors, no computation, nothing heavy to import."""

SCHEMA_VERSION = "1.0"
"""Version of every JSON that dpaudit writes: readers refuse an unknown major version."""
