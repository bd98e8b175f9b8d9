"""35 binary tasks on the packaged corpus, so that sparse probing needs no download.

A text is a stretch of `context - 1` consecutive tokens of a held-out document, so every text has the same length and no
label can be read from it. Training and test texts come from different documents. Six datasets:

- **package** (up to eleven tasks): which package a text documents, each of the eleven that have the most text
  against the others, evenly;
- **kind** (up to three): whether a text opens the documentation of a function, a class or a module;
- **layout** (six), **markup** (five), **values** (five) and **wording** (five): whether the text, as it is shown, has
  what a pattern finds (`PATTERNS`).
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from sae_lib.metrics.probing.config import ProbingConfig
from sae_lib.metrics.probing.tasks import LabelledTexts, Tokens
from sae_lib.util.errors import ArtifactError

PATTERNS: dict[str, dict[str, str]] = {
    "layout": {
        "interactive example": r">>>",
        "heading underline": r"(?m)^\s*(-{4,}|={4,})\s*$",
        "numpydoc parameter": r"(?m)^\s*\*{0,2}\w+ : \S",
        "Google-style parameter": r"(?m)^\s*`?\w+`? \([^)\n]+\):",
        "bullet": r"(?m)^\s*[-*+] \S",
        "indented line": r"(?m)^ {4,}\S",
    },
    "markup": {
        "role": r":\w+:`",
        "literal": r"``",
        "single backticks": r"(?<![`:\w])`[^`\n]+`(?!`)",
        "directive": r"(?m)^\s*\.\. \w+",
        "LaTeX": r":math:|\\[a-zA-Z]+|\$",
    },
    "values": {
        "decimal number": r"\d\.\d",
        "quoted string": r"""(?<!\w)(['"])\w[^'"\n]*\1""",
        "True, False or None": r"\b(True|False|None)\b",
        "square bracket": r"\[",
        "keyword argument": r"\w=\S",
    },
    "wording": {
        "obligation": r"\b(should|must|cannot|required?)\b",
        "condition": r"\b[Ii]f\b",
        "negation": r"\b([Nn]ot|[Nn]o|without|never)\b",
        "passive voice": r"\b(is|are|be|was|were) \w{2,}ed\b",
        "option or default": r"(?i)\b(optional|defaults?)\b",
    },
}
MOST_CLASSES = {"package": 11, "kind": 3}
DATASETS = (*MOST_CLASSES, *PATTERNS)


class Piece(NamedTuple):
    tokens: Tokens
    text: str
    package: str
    kind: str | None  # None where it does not open its document: nothing in it tells the kind


def documentation_texts(
    documents: Iterable[dict[str, Any]], tokenizer: Any, config: ProbingConfig, names: tuple[str, ...] = DATASETS
) -> list[LabelledTexts]:
    """The labelled texts of the datasets `names`, whose tasks share texts, from rows with text, package and kind.
    Raises ArtifactError: fewer than `min_per_class` texts have a pattern or have it not; no document is long enough."""
    pieces = Pieces(documents, tokenizer, config)
    found: list[LabelledTexts] = []
    for name in names:
        if name in MOST_CLASSES:
            found += pieces.by_class(name, MOST_CLASSES[name])
        else:
            found += [pieces.by_pattern(name, task, pattern) for task, pattern in PATTERNS[name].items()]
    return found


class Pieces:
    """Training and test pieces in shuffled order, and which of them some task already uses."""

    def __init__(self, documents: Iterable[dict[str, Any]], tokenizer: Any, config: ProbingConfig) -> None:
        self.sizes = (config.train_per_task // 2, config.test_per_task // 2)
        self.smallest = config.min_per_class
        self.used: set[Tokens] = set()
        rows, length = list(documents), config.context - 1
        texts = [row["text"] for row in rows]
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if rows else []
        of_document: list[list[Piece]] = []
        for row, ids in zip(rows, encoded, strict=True):
            whole = [tuple(ids[start : start + length]) for start in range(0, len(ids) - length + 1, length)]
            kinds = [row["kind"], *[None] * len(whole)]
            cut = [Piece(ids, tokenizer.decode(list(ids)), row["package"], kinds[i]) for i, ids in enumerate(whole)]
            of_document += [cut] if cut else []
        if not of_document:
            raise ArtifactError(
                f"probing.context: no held-out document has {length} tokens; lower it, or give more text"
            )
        rng = np.random.default_rng(config.seed)
        tested = config.test_per_task / (config.train_per_task + config.test_per_task)
        is_test = rng.permutation(len(of_document)) < round(tested * len(of_document))
        self.splits: list[list[Piece]] = []
        for wanted in (False, True):
            pieces = [p for these, test in zip(of_document, is_test, strict=True) if test == wanted for p in these]
            distinct = {pieces[i].tokens: pieces[i] for i in rng.permutation(len(pieces))}
            # Documents repeat each other: what is trained on is not tested on.
            seen = {piece.tokens for piece in self.splits[0]} if wanted else set()
            self.splits.append([piece for tokens, piece in distinct.items() if tokens not in seen])

    def by_class(self, column: str, most: int) -> list[LabelledTexts]:
        """The largest classes of a column, each a task, where two or more are large enough."""
        labels = self.largest(column, most)
        if len(labels) < 2:
            return []
        train, test = (
            {label: self._pick(classes[label], size) for label in labels}
            for classes, size in zip(self._classes(column), self.sizes, strict=True)
        )
        return [LabelledTexts(column, train, test, labels)]

    def largest(self, column: str, most: int) -> tuple[str, ...]:
        """The classes of a column that are large enough, those with the most training texts first."""
        train, test = self._classes(column)
        enough = [label for label in train if min(len(train[label]), len(test.get(label, ()))) >= self.smallest]
        return tuple(sorted(enough, key=lambda label: (-len(train[label]), label))[:most])

    def _classes(self, column: str) -> list[dict[str, list[Tokens]]]:
        splits: list[dict[str, list[Tokens]]] = [{}, {}]
        for classes, pieces in zip(splits, self.splits, strict=True):
            for piece in pieces:
                if label := getattr(piece, column):
                    classes.setdefault(label, []).append(piece.tokens)
        return splits

    def by_pattern(self, dataset: str, task: str, pattern: str) -> LabelledTexts:
        """Texts in which `pattern` is found, and as many in which it is not."""
        found = re.compile(pattern).search
        splits = []
        for pieces, size, what in zip(self.splits, self.sizes, ("training", "test"), strict=True):
            has: dict[bool, list[Tokens]] = {True: [], False: []}
            for piece in pieces:
                has[found(piece.text) is not None].append(piece.tokens)
            size = min(size, len(has[True]), len(has[False]))
            if size < self.smallest:
                raise ArtifactError(
                    f"probing: {dataset}, task {task}: its smaller class has {size} {what} texts, "
                    f"needed: {self.smallest}; lower probing.min_per_class, leave {dataset} out of "
                    "probing.datasets, or give more text"
                )
            splits.append({task: self._pick(has[True], size), f"no {task}": self._pick(has[False], size)})
        return LabelledTexts(dataset, splits[0], splits[1], (task,))

    def _pick(self, candidates: list[Tokens], size: int) -> list[Tokens]:
        """The first `size` texts, before all those that some task uses already: fewer to encode for each SAE."""
        picked = sorted(candidates, key=lambda tokens: tokens not in self.used)[:size]
        self.used.update(picked)
        return picked
