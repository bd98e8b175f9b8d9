"""Toy data whose true features are known, so that absorption is not estimated but counted.

A toy is a set of orthonormal directions. Single features fire on their own; a child fires only where its parent
does. An SAE has absorbed the parent where parent and child are on and the parent's latent is silent, its direction
taken over by the child's decoder row (Chanin et al. 2024, arXiv 2409.14507).

- `config`: how many seeds, steps and levels.
- `data`: the toys; `synthetic`: larger ones, in SynthSAEBench's shape.
- `methods`: what is trained on them, at which sparsity.
- `training`: toy SAEs, trained by the `Trainer` of every other SAE, on several cores, each once.
- `score`: their metrics, latents matched to true features; which latents fire on which inputs.
- `experiments`: the tables of the ground-truth study, sparsity matched to the true L0; and the toys and measures
  that a profile asks for beside them; `ideas`: ideas against absorption, and what would refute them.
"""
