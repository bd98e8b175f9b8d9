"""Sparse probing (Gurnee et al., 2023), computed as SAEBench 0.6.0 does.

Can a property of a text be read from one, two or five latents of an SAE? Latents are averaged over the text's
tokens, the k latents with the largest difference between the two classes' means are kept, and a logistic
regression on them is tested on other texts. **Higher is better**; chance is 0.5, and the same regression on
the whole residual stream shows what there is to be found.

- `config`: every number of the metric, by name.
- `documentation`: 35 binary tasks on the packaged corpus, no download.
- `datasets`: SAEBench's eight datasets (35 binary tasks) from the Hugging Face hub, and labelled local files.
- `tasks`: from labelled texts to balanced binary tasks.
- `probes`: the choice of k dimensions, and the regression.
- `reference`: what depends on the language model only, computed once and kept on disk.
- `score`: the accuracies of an SAE.

Nothing is imported here, so that reading a configuration does not load PyTorch.
"""
