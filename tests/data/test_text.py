"""Whatever users call text: each row is read, left out and counted, or refused in one line; never half of each."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zstandard
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from sae_lib.data.config import CorpusConfig
from sae_lib.data.corpus import Texts, build_tokens, documents_of, file_rows, load_documents, split_of
from sae_lib.data.language_model import LanguageModel
from sae_lib.data.spelling import Lessons
from sae_lib.data.tokens import SPLITS, load_tokens, pack, special_ids, tokenizer_key
from sae_lib.data.words import alphabetic_words
from sae_lib.metrics.probing.config import LabelledFiles
from sae_lib.metrics.probing.datasets import _read_file
from sae_lib.share.evaluate import chosen_texts
from sae_lib.util.errors import ArtifactError
from tests.data.test_corpus import EOS, TEXTS, TOKENIZER, parts, sizes, word_tokenizer
from tests.tiny_models import VOCABULARY, save_tiny_model


def lines(folder: Path, *rows: Any, name: str = "texts.jsonl") -> str:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def texts_of(*files: str, column: str = "text") -> Texts:
    return Texts(load_documents(CorpusConfig(source="files", files=files)), column)


def test_rows_without_text_are_counted_and_keep_their_place(tmp_path):
    texts = texts_of(lines(tmp_path, {"text": "one", "n": 1}, {"text": None}, {"n": 3}, {"text": ""}, {"text": "two"}))
    assert [(row.get("n"), text) for row, text in texts] == [(1, "one"), (None, ""), (3, ""), (None, ""), (None, "two")]
    assert texts.note == "3 of 5 rows have no text in 'text' and are left out"
    whole = texts_of(lines(tmp_path, {"text": "one"}))
    assert list(whole) and whole.note is None


@pytest.mark.parametrize(
    ("value", "kind"), [(["w1", "w2"], "list"), (3, "int"), (0.5, "float"), (True, "bool"), ({"en": "w1"}, "dict")]
)
def test_a_column_that_holds_something_else_is_named_with_its_type(tmp_path, value, kind):
    file = lines(tmp_path, {"text": "fine", "title": "a"}, {"text": value, "title": "b"})
    told = rf"^corpus.text_field: column 'text' holds a {kind}, not text, in row 2; name a column of text \(title\)$"
    with pytest.raises(ArtifactError, match=told):
        list(texts_of(file))
    with pytest.raises(ArtifactError, match=rf"^text_field: column 'text' holds a {kind}"):
        list(chosen_texts(None, [file], "text"))


def test_a_column_that_no_row_has(tmp_path):
    file = lines(tmp_path, *({"body": "w1", "number": i} for i in range(2000)))
    read = []
    with pytest.raises(ArtifactError, match="no column 'text' in the corpus; it has body, number"):
        read += [text for _, text in texts_of(file)]
    with pytest.raises(ArtifactError, match="no column 'text'"):
        list(texts_of(lines(tmp_path, {"body": "w1"})))


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_other_encodings_are_named(tmp_path, name, encoding):
    file = tmp_path / name
    file.write_bytes('{"text": "café"}\n'.encode(encoding))
    with pytest.raises(ArtifactError, match=rf"^corpus.files: {file} is not UTF-8 after row 0; convert it") as caught:
        list(texts_of(str(file)))
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_text(tmp_path):
    for name in ("a.jsonl", "a.txt"):
        (tmp_path / name).write_bytes(b'\xef\xbb\xbf{"text": "one"}\n')
    assert [text for _, text in texts_of(str(tmp_path / "a.jsonl"))] == ["one"]
    assert [text for _, text in texts_of(str(tmp_path / "a.txt"))] == ['{"text": "one"}']


def test_half_a_surrogate_pair_is_replaced(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "w1 \\ud83d w2"}\n{"text": "\\ud83d\\ude00"}\n')
    assert [text for _, text in texts_of(str(tmp_path / "a.jsonl"))] == ["w1 ? w2", "😀"]
    assert [text for _, text in chosen_texts(["w1 \ud83d w2"], (), "text")] == ["w1 ? w2"]
    assert pack((text for _, text in texts_of(str(tmp_path / "a.jsonl"))), TOKENIZER, 4).shape == (2, 4)


@pytest.mark.parametrize("name", ["run[1]/text.jsonl", "what?.jsonl", "all*.jsonl", "a::b.jsonl", "{x}.jsonl"])
def test_names_of_files_are_no_patterns(tmp_path, name):
    lines(tmp_path, {"text": "another"}, name="allxyz.jsonl")
    assert [text for _, text in texts_of(lines(tmp_path, {"text": "one"}, name=name))] == ["one"]


def test_forms_of_json(tmp_path):
    (tmp_path / "a.json").write_text('\n [{"text": "one"},\n {"text": "two"}]')
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n\n   \n{"text": "two"}')
    frames = [zstandard.compress(f'{{"text": "{word}"}}\n'.encode()) for word in ("one", "two")]
    (tmp_path / "c.jsonl.zst").write_bytes(b"".join(frames))
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"one\r\ntwo\n"))
    for name in ("a.json", "b.jsonl", "c.jsonl.zst", "d.txt.gz"):
        assert [row["text"] for row in file_rows(tmp_path / name)] == ["one", "two"], name
    both = texts_of(str(tmp_path / "b.jsonl"), str(tmp_path / "d.txt.gz"))
    assert [text for _, text in both] == ["one", "two"] * 2, "files of several types"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"text": "fine"}\n["w1"]\n', r"cannot be read after row 1 \(ValueError: a list, not an object"),
        (b'{"text": "fine"}\n{"text": \n', r"cannot be read after row 1 \(JSONDecodeError: "),
        (b"", "is empty; give files that hold text"),
    ],
)
def test_what_is_no_table_is_named_at_its_row(tmp_path, content, says):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"^corpus\.files: {tmp_path}/a\.jsonl {says}") as caught:
        list(texts_of(str(tmp_path / "a.jsonl")))
    assert "\n" not in str(caught.value)


def test_a_truncated_archive_is_named(tmp_path):
    whole = gzip.compress(b"".join(b'{"text": "w%d"}\n' % i for i in range(1000)))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:-100])
    with pytest.raises(ArtifactError, match=r"a\.jsonl\.gz cannot be read after row \d+ \(EOFError"):
        list(texts_of(str(tmp_path / "a.jsonl.gz")))


def test_building_and_evaluating_read_the_same_text(tmp_path):
    """The documents of all splits together are those of an evaluation."""
    odd = [{"text": None}, {"other": 1}, {"text": "w1 \ud83d w2"}, {"text": " "}, {"text": "w3 <eos> w4"}]
    file = lines(tmp_path, *({"text": text} for text in TEXTS), *odd)
    profile = sizes(file, 100)
    rows = list(load_documents(profile.corpus))
    read = {split: list(documents_of(split, rows, profile.corpus)) for split in SPLITS}
    evaluated = [text for _, text in chosen_texts(None, [file], "text") if text]
    assert sorted(text for each in read.values() for text in each) == sorted(evaluated)
    build_tokens(*parts(profile), TOKENIZER, tmp_path / "tokens", tmp_path)
    for split in SPLITS:
        texts = [text for text in evaluated if split_of(text, profile.corpus) == split]
        found = load_tokens(tmp_path / "tokens", split)
        assert np.array_equal(found, pack(texts, TOKENIZER, 16, len(found)))


def test_rows_without_text_are_told_once_when_tokens_are_built(tmp_path):
    rows = [{"text": text} for text in TEXTS]
    profile = sizes(lines(tmp_path, {"text": None}, *rows, {"id": 1}), 1000)
    with pytest.warns(UserWarning, match=r"^corpus: 2 of [0-9]+ rows have no text in 'text' and are left out$") as told:
        build_tokens(*parts(profile), TOKENIZER, tmp_path / "tokens", tmp_path)
    assert len(told) == 1


@pytest.mark.parametrize("words", [1, 2, 30])
def test_short_documents_fill_the_store_that_was_asked_for(tmp_path, words):
    """Of a document of two tokens every second one gives no row; a margin of 3 % is far too little for that."""
    profile = sizes(lines(tmp_path, *({"text": " ".join(f"w{i % 40 + j}" for j in range(words))} for i in range(3000))))
    build_tokens(*parts(profile), TOKENIZER, tmp_path / "tokens", tmp_path)
    rows = (~np.isin(load_tokens(tmp_path / "tokens", "train"), sorted(special_ids(TOKENIZER)))).sum(axis=1)
    assert rows.sum() >= 1000


def test_special_tokens_in_the_text_are_no_rows_and_are_made_up_for(tmp_path):
    profile = sizes(lines(tmp_path, *({"text": f"w{i % 40} " + "<eos> " * 20} for i in range(4000))))
    build_tokens(*parts(profile), TOKENIZER, tmp_path / "tokens", tmp_path)
    assert (load_tokens(tmp_path / "tokens", "train") > EOS).sum() >= 1000


def test_advice_on_too_little_text_can_be_followed(tmp_path):
    file = lines(tmp_path, *({"text": f"w{i % 40} w{i % 7}"} for i in range(300)))
    with pytest.raises(ArtifactError, match=r"data.train_tokens: .*, needed: 1,000; lower it to \d+ or less") as caught:
        build_tokens(*parts(sizes(file)), TOKENIZER, tmp_path / "tokens", tmp_path)
    most = int(str(caught.value).split("lower it to ")[1].split()[0])
    assert most > 200
    build_tokens(*parts(sizes(file, most)), TOKENIZER, tmp_path / "tokens", tmp_path)
    with pytest.raises(ArtifactError, match=f"lower it to {most} or less"):
        build_tokens(*parts(sizes(file, most + 1)), TOKENIZER, tmp_path / "more", tmp_path)


def test_too_few_documents_of_a_split_name_it(tmp_path):
    profile = sizes(lines(tmp_path, *({"text": f"w{i}"} for i in range(40))), 16)
    profile.data = profile.data.model_copy(update={"held_out_contexts": 50})
    told = (
        r"data.held_out_contexts: .*fill 1 contexts of 16, needed: 50; lower it to 1 .*raise corpus.held_out_fraction"
    )
    with pytest.raises(ArtifactError, match=told):
        build_tokens(*parts(profile), TOKENIZER, tmp_path / "tokens", tmp_path)


def test_lessons_go_on_at_the_same_distance(monkeypatch):
    """Beyond the contexts that were planned, and whatever blocks they come in."""
    places = []
    for block in (40, 7):
        lessons = Lessons.__new__(Lessons)
        lessons._places, lessons._distance = np.linspace(0, 19, 5).round().astype(np.int64), 19 / 4
        lessons._rng = np.random.default_rng(0)
        lessons._lines = _Numbers()  # type: ignore[assignment]
        contexts = np.zeros((40, 3), dtype=np.int32)
        for start in range(0, 40, block):
            lessons.replace(contexts[start : start + block], start)
        places.append(np.flatnonzero(contexts[:, 0]).tolist())
    assert places[0] == places[1] == [0, 5, 10, 14, 19, 24, 28, 33, 38]


class _Numbers:
    def mixed_windows(self, rng: Any, n: int, length: int) -> Any:
        return np.ones((n, length), dtype=np.int32), None


def test_a_tokenizer_written_in_python_builds_tokens(tmp_path):
    tokenizer = ByT5Tokenizer()
    profile = sizes(lines(tmp_path, *({"text": text} for text in TEXTS)), 500)
    manifest = build_tokens(*parts(profile), tokenizer, tmp_path / "tokens", tmp_path)
    assert build_tokens(*parts(profile), ByT5Tokenizer(), tmp_path / "tokens", tmp_path) == manifest
    assert tokenizer_key(ByT5Tokenizer(extra_ids=7)) != tokenizer_key(tokenizer)
    assert tokenizer_key(TOKENIZER) != tokenizer_key(word_tokenizer(bos_token="<bos>", eos_token="w1"))


def test_a_tokenizer_larger_than_the_embedding(tmp_path):
    """What was added to it is no word, and text that holds it is refused before the model is asked."""
    config = save_tiny_model(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    tokenizer.add_tokens(["added", "more"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="no embedding for 2 entries of its tokenizer"):
        lm = LanguageModel.load(config, whole=False)
    assert lm.remarks == [f"{config.name} has no embedding for 2 entries of its tokenizer: they are no words"]
    assert {VOCABULARY, VOCABULARY + 1} <= lm.special_ids
    assert "added" in [word.text for word in alphabetic_words(tokenizer, frozenset())]
    assert alphabetic_words(lm.tokenizer, lm.special_ids) == []
    with pytest.raises(
        ArtifactError, match=rf"embeddings for {VOCABULARY} tokens, and there are tokens 0 to {VOCABULARY}"
    ):
        lm.check_tokens(pack(["w4 added w5"], lm.tokenizer, 4))


def test_a_tokenizer_that_is_a_sentencepiece_file_alone(tmp_path):
    config = save_tiny_model(tmp_path, "llama")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x07\x0a\x03<s>")
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ArtifactError, match=r"is a SentencePiece file alone .*`pip install sentencepiece") as caught:
        LanguageModel.load(config, whole=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_labels_stay_what_they_are(tmp_path, suffix):
    """One null makes no number of integers; it is left out and counted."""
    rows = [{"text": f"w{i}", "label": i % 2} for i in range(6)] + [{"text": "w7", "label": None}]
    file = lines(tmp_path, *rows)
    if suffix == ".parquet":
        file = str(tmp_path / "texts.parquet")
        pd.DataFrame(rows).astype({"label": "Int64"}).to_parquet(file)
    with pytest.warns(UserWarning, match=r"^probing.files.mine: 1 of 7 rows of .* lack a text or a label"):
        table = _read_file("mine", file, LabelledFiles(train=file, text="text", label="label"))
    assert sorted(set(table["label"])) == ["0", "1"] and len(table) == 6
    with pytest.raises(ArtifactError, match="no column 'class' with labels"):
        _read_file("mine", file, LabelledFiles(train=file, text="text", label="class"))
