"""Every number of the absorption metric, by name. Defaults are those of SAEBench 0.6.0 unless they say otherwise."""

from pydantic import Field

from sae_lib.util.strict import Strict


class AbsorptionConfig(Strict):
    max_words: int | None = Field(default=None, gt=0)
    """At most this many words, taken evenly over the letters; None takes the whole vocabulary, as SAEBench does."""
    train_fraction: float = Field(default=0.8, gt=0, lt=1)
    """Share of the shuffled words that trains the probes; the rest tests them."""
    icl_examples: int = Field(default=10, ge=0)
    """Answered example lines in front of the word."""
    seed: int = 42
    """Draws the capped vocabulary and the split, initialises the probes and orders their batches."""
    probe_prompt_seed: int = 43
    """Draws the examples of the prompts that the probes are trained and tested on."""
    absorption_prompt_seed: int = 44
    """Draws the examples of the fresh prompts that absorption is measured on."""
    lm_batch: int = Field(default=64, gt=0)
    """Prompts in one forward pass of the language model."""

    probe_epochs: int = Field(default=50, gt=0)
    """Passes over the training words, for the ground-truth probe and the k-sparse probes."""
    probe_batch: int = Field(default=64, gt=0)
    """Words in a step of the ground-truth probe."""
    probe_learning_rate: float = Field(default=0.01, gt=0)
    probe_final_learning_rate: float = Field(default=1e-5, gt=0)
    """Where the exponential decay, one factor per epoch, arrives after the last epoch."""
    probe_weight_decay: float = Field(default=1e-4, ge=0)
    min_probe_f1: float = Field(default=0.6, ge=0, le=1)
    """A letter counts when the ground-truth probe's F1 on the test words is above this."""
    min_letters: int = Field(default=20, ge=0)
    """Below this many letters SAEBench gives no result; here the result is given with a note."""

    sparse_batch: int = Field(default=4096, gt=0)
    """Words in a step of the sparse probe over latents, at most."""
    sparse_min_steps: int = Field(default=32, gt=0)
    """Steps an epoch of the sparse probe has at least, as of SAEBench's batches of a vocabulary of 130,000 words.
    SAEBench has no such floor: on a few thousand words its single step an epoch leaves the probe untrained and inflates
    absorption, and with 8 the probe's own seed still moves a score by a third."""
    sparse_weight_decay: float = Field(default=1e-6, ge=0)
    sparse_l1: float = Field(default=0.01, ge=0)
    """Weight of the mean over letters of the L1 norm of the sparse probe's weights."""
    latent_bytes: int = Field(default=2**31, gt=0)
    """Up to this size the training words' latents are kept in memory, of as many SAEs as fit; above it those of one
    SAE are encoded again at each step."""
    k_max: int = Field(default=10, gt=0)
    """Largest number of latents that may stand for one letter together."""
    f1_jump: float = Field(default=0.03, ge=0)
    """One more latent is a feature split when it raises the test F1 by more than this."""
    logistic_max_iter: int = Field(default=500, gt=0)

    fraction_min_cosine: float = 0.1
    """*fraction*: decoder cosine with the probe from which a latent can be an absorber."""
    full_min_cosine: float = 0.025
    """*full*: the same for the one latent that projects most on the probe."""
    min_projection_share: float = 0.4
    """Both: share of the residual stream's projection on the probe that the absorbers must carry."""
    max_absorbing_latents: int = Field(default=3, gt=0)
    """*fraction*: so many absorbers are added up."""
    silent_below: float = 1e-8
    """*full*: an activation below this is silent."""
