"""Built-in models, their evaluation, and replacements for layers that mix records."""
