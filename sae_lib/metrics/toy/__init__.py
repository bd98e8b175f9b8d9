"""Toy data whose true features are known, so that absorption is not estimated but counted.

A toy is a set of orthonormal directions. Single features fire on their own; a child fires only where its parent
does. An SAE has absorbed the parent where parent and child are on and the parent's latent is silent, its direction
taken over by the child's decoder row (Chanin et al. 2024, arXiv 2409.14507).

`data` and `synthetic` hold the toys, `methods` what is trained on them, `training` how, `score` the metrics,
`experiments` the tables.
"""
