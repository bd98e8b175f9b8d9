"""Temporal mechanisms for sparse autoencoders: training, evaluation and the reports of two papers.

Nothing is imported here, so that `python -m sae_lib.study.pipeline plan` starts without loading torch.
"""

__version__ = "0.1.0"
