"""Measurements that take longer than a test, each with its command and its committed result."""
