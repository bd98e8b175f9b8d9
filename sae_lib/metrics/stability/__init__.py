"""Stability: does an SAE find the same features again?

Both papers promise stable features in their titles and measure absorption instead. Here stability is measured
three ways, each beside the number that chance gives:

- `seeds`: do two SAEs that differ only in their seed learn the same decoder directions?
- `score`: does the latent of a word's first letter fire in every context that holds the word? Do activations go on
  from one token of a text to the next?

`reference` holds what depends on the language model only, computed once and kept on disk.
"""
