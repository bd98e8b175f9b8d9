"""Tests, laid out like `sae_lib`."""
