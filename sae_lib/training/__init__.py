"""Recipes, the trainer, one run and its log."""
