"""What methods and metrics are called, in which order they stand, and which direction of a metric is better."""

from __future__ import annotations

from typing import Literal, NamedTuple

from sae_lib.mechanisms import METHODS as METHOD
from sae_lib.mechanisms import methods
from sae_lib.mechanisms.adaptive_temporal_masking import COMPONENTS

Direction = Literal["lower", "higher", "none"]
ARROWS: dict[str, str] = {"lower": "↓", "higher": "↑", "none": "–"}

# What methods are called, in the order of every table and figure.
METHODS: dict[str, str] = {key: METHOD[key].name for key in methods("main", "as written", "floor")}
MAIN_METHODS = methods("main")
# What the other methods are compared with.
BASELINE = "standard"
# Methods of toy data alone.
TOY_METHODS: dict[str, str] = {key: METHOD[key].name for key in methods("toy")}

# The three mechanisms of TemporalSAE: column of evaluation.parquet -> name.
MECHANISMS: dict[str, str] = {
    "temporal": "temporal penalty",
    "resampling": "resampling",
    "gradient_scaling": "gradient scaling",
}
# Letters with few words in any text: their scores are shown with the counts they rest on.
RARE_LETTERS = ("j", "q", "x", "z")
# The three parts of ATM's importance score.
IMPORTANCE_PARTS = COMPONENTS


class Metric(NamedTuple):
    """How a column of evaluation.parquet is shown."""

    label: str
    direction: Direction
    decimals: int

    @property
    def header(self) -> str:
        """The label with an arrow: ↑ higher is better, ↓ lower is better, – neither."""
        return f"{self.label} {ARROWS[self.direction]}"

    @property
    def axis(self) -> str:
        """The label with its direction in words, for an axis."""
        return self.label if self.direction == "none" else f"{self.label}\n({self.direction} is better)"


METRICS: dict[str, Metric] = {
    "l0": Metric("L0", "none", 1),
    "l1": Metric("L1", "none", 1),
    "mse": Metric("MSE", "lower", 4),
    "cosine": Metric("cosine", "higher", 3),
    "explained_variance": Metric("explained variance", "higher", 3),
    "ce_score": Metric("CE score", "higher", 3),
    "kl_score": Metric("KL score", "higher", 3),
    "absorption_fraction": Metric("absorption, fraction", "lower", 3),
    "absorption_full": Metric("absorption, full", "lower", 3),
    "absorption_unthresholded": Metric("absorption, unthresholded", "lower", 3),
    "num_split_features": Metric("splits", "none", 2),
    "dead_fraction": Metric("dead share", "lower", 3),
    "letters": Metric("letters", "none", 0),
    "words": Metric("words", "none", 0),
    "final_loss": Metric("loss", "lower", 2),
    "probing_k1": Metric("probing, k = 1", "higher", 3),
    "probing_k2": Metric("probing, k = 2", "higher", 3),
    "probing_k5": Metric("probing, k = 5", "higher", 3),
    "probing_all": Metric("probing, residual stream", "higher", 3),
    "probing_chance": Metric("chance", "none", 2),
    "matched_cosine": Metric("seeds, matched cosine", "higher", 3),
    "max_cosine": Metric("seeds, max cosine", "higher", 3),
    "share_matched": Metric("seeds, share > 0.7", "higher", 3),
    "context_firing": Metric("contexts, firing", "higher", 3),
    "context_probe": Metric("contexts, probe", "none", 3),
    "context_words": Metric("context words", "none", 0),
    "token_change": Metric("tokens, change", "none", 3),
    "token_change_shuffled": Metric("change, shuffled", "none", 3),
    "token_autocorrelation": Metric("tokens, autocorrelation", "none", 3),
    "token_autocorrelation_shuffled": Metric("autocorrelation, shuffled", "none", 3),
    "parent_silent_rate": Metric("parent silent", "lower", 3),
    "miss_rate": Metric("parent missed alone", "lower", 3),
    "cos_child_parent": Metric("cos(child, parent)", "lower", 3),
    "cos_parent_parent": Metric("cos(parent, parent)", "higher", 3),
    "top_share": Metric("share of the top latents", "lower", 3),
}


def method_name(method: str) -> str:
    """The display name of a method; an unknown one is shown as it is."""
    return (METHODS | TOY_METHODS).get(method, method.replace("_", " "))


def in_order(methods: list[str]) -> list[str]:
    """Methods in the order of `METHODS`, unknown ones last and sorted.

    >>> in_order(["atm", "zeta", "topk"])
    ['topk', 'atm', 'zeta']
    """
    known = [*METHODS, *TOY_METHODS]
    return sorted(set(methods), key=lambda method: (known.index(method) if method in known else len(known), method))
