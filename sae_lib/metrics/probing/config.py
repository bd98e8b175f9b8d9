"""Every number of sparse probing, by name. Defaults are those of SAEBench 0.6.0 unless they say otherwise."""

from typing import Literal

from pydantic import Field, model_validator

from sae_lib.data import hub
from sae_lib.util.strict import Strict

HUB_REVISIONS: dict[str, str | None] = {
    name: hub.DATASETS[name].revision
    for name in (
        "LabHC/bias_in_bios",
        "canrager/amazon_reviews_mcauley_1and5",
        "codeparrot/github-code",
        "fancyzhx/ag_news",
        "Helsinki-NLP/europarl",
    )
}
"""Commit of each hub dataset, as `hub.yaml` pins it; None reads the newest one, as SAEBench does for all of them."""


class LabelledFiles(Strict):
    """A dataset of local files: one row per text, with a text column and a column of class labels."""

    train: str
    """A .jsonl or .parquet file; compressed .jsonl (.gz, .xz, .bz2, .zst) is read as well."""
    test: str | None = None
    """Texts to test on; None takes them from the training file, which is shuffled first."""
    text: str = "text"
    label: str = "label"
    """Each class is one task, itself against all the others (of two classes, the first against the second)."""


class ProbingConfig(Strict):
    source: Literal["documentation", "hub", "files"] = "hub"
    """`documentation`: the packaged corpus; `hub`: SAEBench's datasets; `files`: labelled local files."""
    datasets: tuple[str, ...] = ()
    """Names of the source's datasets that are used; empty takes all."""
    revisions: dict[str, str | None] = HUB_REVISIONS
    """For `hub`: the commit of each dataset."""
    files: dict[str, LabelledFiles] = Field(default_factory=dict)
    """For `files`: a name for each dataset, and where it lies."""

    train_per_task: int = Field(default=4000, ge=4, multiple_of=2)
    """Texts that a task's probe is trained on, half of them of each class."""
    test_per_task: int = Field(default=1000, ge=4, multiple_of=2)
    """Texts that it is tested on, half of them of each class."""
    min_per_class: int = Field(default=10, ge=2)
    """For `documentation`, where a small class makes a smaller task: the fewest training and test texts of a class. A
    package or kind with fewer makes no task; a pattern with fewer is an error."""
    context: int = Field(default=128, ge=2)
    """A text is cut to so many tokens, BOS included."""
    seed: int = 42
    """Draws the texts of each class, and the negatives of each task."""
    lm_batch: int = Field(default=32, gt=0)
    """Texts in one forward pass of the language model."""

    ks: tuple[int, ...] = Field(default=(1, 2, 5), min_length=1)
    """Numbers of latents that a probe reads."""
    max_iter: int = Field(default=1000, gt=0)
    """Limit on the iterations of a logistic regression."""

    @model_validator(mode="after")
    def _fits_together(self) -> "ProbingConfig":
        if self.source == "files" and not self.files:
            raise ValueError("source 'files' needs probing.files: a name and a file for each dataset")
        if min(self.ks) < 1 or len(set(self.ks)) != len(self.ks):
            raise ValueError(f"ks must be distinct numbers of latents from 1 on, got {list(self.ks)}")
        return self
