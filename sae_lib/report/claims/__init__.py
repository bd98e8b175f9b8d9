"""The papers' claims, each with its check and its verdict."""
