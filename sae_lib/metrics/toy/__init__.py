"""Toy data whose true features are known, so that absorption is not estimated but counted.

A toy is a set of orthonormal directions. Single features fire on their own; a child fires only where its parent
does. An SAE has absorbed the parent where parent and child are on and the parent's latent is silent, its direction
taken over by the child's decoder row (Chanin et al. 2024, arXiv 2409.14507).

- `config`: how many seeds, steps and levels.
- `data`: the toys; `synthetic`: larger ones, in SynthSAEBench's shape.
- `methods`: what is trained on them, at which sparsity.
- `training`: one toy SAE, trained by the `Trainer` of every other SAE.
- `score`: its metrics, latents matched to true features; `recovery`: those that also hold for more features than
  latents.
- `pool`: many toy SAEs, on several cores, each once.
- `experiments`: the tables of the ground-truth study, sparsity matched to the true L0; which latents fire on which
  inputs. `field`: the two toys and measures that a profile asks for beside them.

Nothing is imported here, so that reading a configuration does not load PyTorch.
"""
