"""The experiment end to end: its stages, the notebooks that call them, the command that runs these."""
