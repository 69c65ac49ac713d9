"""Canary files, lower bounds from canaries, and conformance checks of trainers."""
