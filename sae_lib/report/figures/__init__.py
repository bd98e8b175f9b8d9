"""Figures, one family per file."""
