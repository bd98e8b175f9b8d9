"""Spelling lessons: each line ends with the right letter, and only letters are labelled."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from sae_lib.data import words as vocabulary
from sae_lib.data.model_loading import POCKET_FOLDER
from sae_lib.data.spelling import ALPHABETIC, ASK, IGNORED, LETTERS, Lessons, SpellingLines, single_token
from sae_lib.util.errors import ArtifactError


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(POCKET_FOLDER)


@pytest.fixture(scope="module")
def lines(tokenizer):
    return SpellingLines(tokenizer)


def test_lessons_ask_as_the_metric_does():
    assert ASK == vocabulary.QUESTION and LETTERS.lower() == vocabulary.LETTERS


def test_words_are_all_alphabetic_entries_and_answers_their_first_letters(tokenizer, lines):
    texts = {i: tokenizer.decode([i]) for i in range(len(tokenizer))}
    special = set(tokenizer.all_special_ids)
    assert lines.words.tolist() == [i for i, text in texts.items() if i not in special and ALPHABETIC.fullmatch(text)]
    for word, answer in zip(lines.words[::97], lines.answers[::97], strict=True):
        assert texts[int(answer)] == f" {texts[int(word)].strip()[0].upper()}"


@pytest.mark.parametrize(("dense", "form"), [(True, "{}: {}"), (False, "{} has the first letter: {}")])
def test_windows_read_as_lessons(tokenizer, lines, dense, form):
    tokens, labels = lines.windows(np.random.default_rng(0), 3, 64, dense)
    assert tokens.shape == labels.shape == (3, 64) and (tokens[:, 0] == lines.bos).all()
    asked = tokenizer.decode(tokens[0]).split("\n")[1:-1]
    assert len(asked) >= 7
    assert all(
        line == form.format(line.split(":")[0].removesuffix(" has the first letter"), line[-1]) for line in asked
    )
    assert all(line.strip()[0].upper() == line[-1] for line in asked)


def test_only_letters_are_labelled_in_every_form(lines):
    rng = np.random.default_rng(1)
    for tokens, labels in (
        lines.windows(rng, 4, 50, True),
        lines.windows(rng, 4, 50, False),
        lines.mixed_windows(rng, 4, 50),
    ):
        marked = labels != IGNORED
        assert marked.any(axis=1).all()
        assert (labels[marked] == tokens[marked]).all() and set(labels[marked]) <= set(lines.letters)
        ends = np.argwhere(marked)
        for row, at in ends[ends[:, 1] < 49]:
            assert tokens[row, at + 1] == lines.newline, "a letter ends its line"


def test_mixed_windows_have_all_three_forms(tokenizer, lines):
    tokens, _ = lines.mixed_windows(np.random.default_rng(2), 8, 128)
    asked = [line for row in tokens for line in tokenizer.decode(row).split("\n")[1:-1]]
    forms = {"prompt" if "first letter" in a else "dense" if ":" in a else "immediate" for a in asked}
    assert forms == {"prompt", "dense", "immediate"}


def test_lessons_replace_their_share_evenly_and_leave_the_rest(tokenizer):
    mixture, again = (np.full((40, 32), 7, dtype=np.int32) for _ in range(2))
    Lessons(tokenizer, 40, 10).replace(mixture, 0)
    lessons = np.flatnonzero((mixture != 7).any(axis=1))
    assert len(lessons) == 10 and np.diff(lessons).max() <= 5
    Lessons(tokenizer, 40, 10).replace(again, 0)
    assert (again == mixture).all()


def test_a_word_that_the_tokenizer_splits_is_named(tokenizer):
    with pytest.raises(ArtifactError, match="splits 'xqzjxqzj' into"):
        single_token(tokenizer, "xqzjxqzj")
