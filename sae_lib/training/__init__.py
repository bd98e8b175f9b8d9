"""Recipes, the trainer, and one run."""
