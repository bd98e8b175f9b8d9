"""Sparse probing (Gurnee et al., 2023), computed as SAEBench 0.6.0 does.

Can a property of a text be read from one, two or five latents of an SAE? Latents are averaged over the text's tokens,
the k with the largest difference between the two classes' means are kept, and a logistic regression on them is tested
on other texts. **Higher is better**; chance is 0.5, and the same on the whole residual stream shows what there is.

35 tasks on the packaged corpus (`documentation`), SAEBench's eight datasets or labelled local files (`datasets`);
what depends on the language model only: `reference`; the accuracies of an SAE: `score`.
"""
