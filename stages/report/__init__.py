"""Looks at training runs: their curves and settings side by side."""
