"""35 binary tasks on documentation strings."""

import random
import re

import pytest

from sae_lib.metrics.probing.config import ProbingConfig
from sae_lib.metrics.probing.documentation import DATASETS, PATTERNS, documentation_texts
from sae_lib.metrics.probing.tasks import draw_tasks
from sae_lib.util.errors import ArtifactError

# What a pattern finds, and what looks like it.
EXAMPLES = {
    "interactive example": (">>> f(1)", "a >> b"),
    "heading underline": ("Notes\n-----\n", "one - two --- three"),
    "numpydoc parameter": ("\nx : array\n", "note: x is an array"),
    "Google-style parameter": ("\n    x (int):\n        Size.", "call f (once) and: go"),
    "bullet": ("\n* first\n", "a * b"),
    "indented line": ("Text\n    more", "Text\n  more"),
    "role": ("see :class:`Tree`", "see: `Tree`"),
    "literal": ("the ``axis``", "the `axis`"),
    "single backticks": ("the `axis` here", "the ``axis`` here"),
    "directive": ("\n.. note:: careful\n", "and so on .. and on"),
    "LaTeX": (r"is \alpha", "is / alpha"),
    "decimal number": ("about 1.5 of", "about 15 of. 3 more"),
    "quoted string": ("mode 'same' is", "the user's and the reader's"),
    "True, False or None": ("If None, skip", "Nonetheless, skip"),
    "square bracket": ("x[0]", "x(0)"),
    "keyword argument": ("f(axis=0)", "a == b"),
    "obligation": ("it must hold", "a mustard seed"),
    "condition": ("if it holds", "the iffy one"),
    "negation": ("does not hold", "a notable one"),
    "passive voice": ("it is computed here", "it is red"),
    "option or default": ("Defaults to 3", "a defaulting bank"),
}
PACKAGES = [f"package{i}" for i in range(13)]


@pytest.mark.parametrize(("dataset", "task"), [(dataset, task) for dataset in PATTERNS for task in PATTERNS[dataset]])
def test_what_a_pattern_finds(dataset, task):
    has, has_not = EXAMPLES[task]
    assert re.search(PATTERNS[dataset][task], has)
    assert not re.search(PATTERNS[dataset][task], has_not)


def documents(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Random words of the tiny tokenizer, with half of the patterns somewhere in each text."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        parts = [has for has, _ in EXAMPLES.values() if rng.random() < 0.3]
        parts += ["".join(rng.choices("bcdfgaeiou", k=3)) for _ in range(60)]
        rng.shuffle(parts)
        kind = ("function", "class", "module", "function", "class", "module", "compiled")[i % 7]
        rows.append({"text": " ".join(parts), "package": PACKAGES[i % len(PACKAGES)], "kind": kind})
    return rows


CONFIG = ProbingConfig(source="documentation", context=33, train_per_task=12, test_per_task=6, min_per_class=2)


@pytest.fixture(scope="module")
def made(tokenizer):
    rows = documents(260)
    return rows, documentation_texts(rows, tokenizer, CONFIG)


def test_there_are_35_balanced_tasks_of_texts_of_one_length(made, tokenizer):
    _, datasets = made
    texts, tasks = draw_tasks(datasets, CONFIG.seed)
    counts = {name: sum(task.dataset == name for task in tasks) for name in DATASETS}
    assert counts == {"package": 11, "kind": 3, "layout": 6, "markup": 5, "values": 5, "wording": 5}
    assert len({(task.dataset, task.name) for task in tasks}) == 35
    assert {len(text) for text in texts} == {32}
    for task in tasks:
        assert len(task.train) == 12 and task.train_labels.sum() == 6
        assert len(task.test) == 6 and task.test_labels.sum() == 3
        pattern = PATTERNS.get(task.dataset, {}).get(task.name)
        if pattern is not None:
            for text, label in zip(task.train.tolist(), task.train_labels.tolist(), strict=True):
                shown = tokenizer.decode(list(texts[text]))
                assert (re.search(pattern, shown) is not None) == label
    # Texts are shared: 35 tasks of 18 texts need far fewer than 630.
    assert len(texts) < 400


def test_training_and_test_texts_come_from_different_documents(made, tokenizer):
    rows, datasets = made
    of_text: dict[tuple[int, ...], set[int]] = {}
    for number, row in enumerate(rows):
        ids = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids) - 31, 32):
            of_text.setdefault(tuple(ids[start : start + 32]), set()).add(number)

    def documents_in(split: str) -> set[int]:
        texts = [text for data in datasets for texts in getattr(data, split).values() for text in texts]
        return set().union(*(of_text[text] for text in texts))

    assert documents_in("train") and documents_in("test")
    assert not documents_in("train") & documents_in("test")


def test_package_and_kind_are_those_of_the_document(made, tokenizer):
    rows, datasets = made
    begin = {tuple(tokenizer(row["text"], add_special_tokens=False)["input_ids"][:32]): row for row in rows}
    package, kind = datasets[0], datasets[1]
    assert set(kind.train) == {"function", "class", "module"}
    for label, texts in kind.train.items():
        # Only the text that opens a document can tell its kind.
        assert [begin[text]["kind"] for text in texts] == [label] * 6
    for label, texts in package.train.items():
        assert {begin[text]["package"] for text in texts if text in begin} <= {label}


def test_the_same_documents_give_the_same_tasks(made, tokenizer):
    rows, datasets = made
    assert documentation_texts(rows, tokenizer, CONFIG) == datasets
    reseeded = documentation_texts(rows, tokenizer, CONFIG.model_copy(update={"seed": 1}))
    assert reseeded != datasets


def test_a_class_that_is_rare_makes_a_smaller_task_and_one_that_is_absent_an_error(tokenizer):
    rows = documents(260)
    for row in rows[20:]:
        row["text"] = row["text"].replace(">>>", "and")
    (layout, *_) = documentation_texts(rows, tokenizer, CONFIG.model_copy(update={"min_per_class": 1}), ("layout",))
    sizes = len(layout.train["interactive example"]), len(layout.train["no interactive example"])
    assert sizes[0] == sizes[1] < 6
    with pytest.raises(ArtifactError, match=r"layout, task interactive example: .* \d \w+ texts, needed: 5"):
        documentation_texts(rows, tokenizer, CONFIG.model_copy(update={"min_per_class": 5}), ("layout",))


def test_one_package_makes_no_task_of_packages(tokenizer):
    rows = [{**row, "package": "only"} for row in documents(60)]
    assert documentation_texts(rows, tokenizer, CONFIG, ("package",)) == []


def test_documents_that_are_too_short(tokenizer):
    rows = [{"text": "ban ben", "package": "a", "kind": "class"}]
    with pytest.raises(ArtifactError, match="no held-out document has 32 tokens"):
        documentation_texts(rows, tokenizer, CONFIG)
