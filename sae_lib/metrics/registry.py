"""Scores of SAEs: what each needs, what it gives, how its numbers are called. One metric is one file, or one package,
that registers its score; whoever names scores reads them here.

    register(Score("sharpness", version=1, evaluate=evaluate, columns={"sharpness": Column("sharpness", "higher", 3)}))
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
from jaxtyping import Float, Int
from pydantic import BaseModel
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.config import CorpusConfig
from sae_lib.data.language_model import LanguageModel
from sae_lib.util.keys import Stage

Direction = Literal["lower", "higher", "none"]
ARROWS: dict[str, str] = {"lower": "↓", "higher": "↑", "none": "–"}


class Column(NamedTuple):
    """How a number of result rows is shown."""

    label: str
    direction: Direction  # which is better
    decimals: int
    quality: bool = False  # whether it is a column of the quality table, which shows what no table of its own has

    @property
    def header(self) -> str:
        """The label with an arrow."""
        return f"{self.label} {ARROWS[self.direction]}"

    @property
    def axis(self) -> str:
        """The label with its direction in words, for an axis."""
        return self.label if self.direction == "none" else f"{self.label}\n({self.direction} is better)"


@dataclass(frozen=True)
class Measured:
    """What a score says of one SAE."""

    summary: dict[str, Any]
    """Columns of the SAE's result row."""
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    """Tables behind them."""
    kept: dict[str, Any] = field(default_factory=dict)
    """What other scores read of this one; goes into JSON."""
    density: Float[Tensor, " d_sae"] | None = None
    """Share of tokens on which each latent fires; not kept on disk."""
    notes: tuple[str, ...] = ()
    """What to know before the numbers are believed."""


@dataclass
class Inputs:
    """What scores are computed from. Each part is made when it is first asked for, and once."""

    load_lm: Callable[[], LanguageModel]
    """The whole language model."""
    read_held_out: Callable[[], Int[Tensor, "context position"]]
    """Contexts with BOS in front that no SAE was trained on."""
    sections: BaseModel
    """Settings of the scores, in fields of their names; a score without one takes its defaults."""
    folder: Path
    """Where references are kept."""
    corpus: CorpusConfig | None = None
    """Text that tasks may be cut from; the packaged corpus is kept in `corpus_cache`."""
    corpus_cache: Path | None = None
    writing: Callable[[], AbstractContextManager[None]] = nullcontext
    """Entered while a reference is made."""
    _references: dict[str, Any] = field(default_factory=dict, init=False)

    @cached_property
    def lm(self) -> LanguageModel:
        return self.load_lm()

    @cached_property
    def held_out(self) -> Int[Tensor, "context position"]:
        return self.read_held_out()

    def settings(self, score: str) -> Any:
        """The settings of a score, an instance of its class; None where it has none."""
        own = SCORES[score].settings
        return getattr(self.sections, score, None) or (own() if own else None)

    def reference(self, score: str) -> Any:
        """What the score needs of the language model: the same for every SAE."""
        if score not in self._references:
            with self.writing():
                self._references[score] = SCORES[score].reference(self)
        return self._references[score]


Earlier = Mapping[str, Mapping[str, Any]]
"""Of one SAE: for each score that is needed its `Measured.kept`."""


@dataclass(frozen=True)
class Score:
    """One metric."""

    name: str
    version: int
    """Raised when the same SAE gets other numbers."""
    evaluate: Callable[[Sequence[Autoencoder], Inputs, Sequence[Earlier]], list[Measured]]
    """The numbers of several SAEs on one device, each as if it were alone."""
    columns: Mapping[str, Column]
    """Those of its numbers that are shown somewhere."""
    settings: type[BaseModel] | None = None
    """Class of its section `evaluation.<name>` in a profile."""
    reference: Callable[[Inputs], Any] = lambda inputs: None
    needs: tuple[str, ...] = ()
    """Scores that it reads of the same SAE."""
    optional: bool = False
    """Whether it is computed only where it is asked for by name."""
    text_key: Callable[[Any, CorpusConfig | None], Any] | None = None
    """Of its settings and the corpus: what it depends on beside them and the held-out text."""

    @property
    def stage(self) -> Stage:
        return Stage(f"score {self.name}", self.version)


SCORES: dict[str, Score] = {}
"""Every registered score, in the order in which they are computed."""
COLUMNS: dict[str, Column] = {}
"""How the columns of registered scores are shown."""


def register(score: Score) -> Score:
    """Make a score known. What it needs has to be known already."""
    unknown = [name for name in score.needs if name not in SCORES]
    if unknown or (score.name in SCORES and SCORES[score.name].evaluate.__module__ != score.evaluate.__module__):
        raise ValueError(f"score '{score.name}' needs unknown scores {unknown}" if unknown else f"two '{score.name}'")
    SCORES[score.name] = score
    COLUMNS.update(score.columns)
    return score


def usual_scores() -> tuple[str, ...]:
    """Those that every SAE of a study gets."""
    return tuple(name for name, score in SCORES.items() if not score.optional)


def with_needs(names: Sequence[str]) -> tuple[str, ...]:
    """The named scores and those that they need, in the order in which they are computed."""
    wanted = set(names)
    for name in reversed(SCORES):
        wanted |= set(SCORES[name].needs) if name in wanted else set()
    return tuple(name for name in SCORES if name in wanted)
