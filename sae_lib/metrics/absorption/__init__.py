"""First-letter feature absorption (Chanin et al., 2024), computed as SAEBench 0.6.0 does.

A language model knows the first letter of a word, a linear probe finds that letter in its residual stream, and an SAE
is expected to hold one latent that fires on every word with that letter. Absorption is the failure where the letter's
latent stays silent on some words while the latent of the word itself carries the letter's direction. **Lower is
better**, and an SAE that is dense or random scores low as well: read it beside L0 and explained variance.

Which words, in which prompts: `sae_lib.data.words`; what depends on the language model only: `reference`; which latents
stand for a letter: `main_latents`; the score of a word, of a letter, of an SAE: `score`.
"""
