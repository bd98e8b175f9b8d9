import bz2
import gzip
import hashlib
import json
import lzma
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import zstandard
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sae_lib.data import corpus, documentation
from sae_lib.data import tokens as tokenising
from sae_lib.data.config import CorpusConfig, DataConfig
from sae_lib.data.corpus import build_tokens, documents_of, load_documents, split_of
from sae_lib.data.tokens import SPLITS, contexts_needed, load_tokens, pack
from sae_lib.profiles.profile import Profile
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import read_json
from tests.data.test_documentation import package
from tests.profiles.test_profile import content

__all__ = ["package"]  # a fixture

WORDS = 300
BOS, EOS = 1, 2


def word_tokenizer(**special: str) -> Any:
    """One token per word: w0 is 3, w1 is 4 ..."""
    words = ["<unk>", "<bos>", "<eos>", *(f"w{i}" for i in range(WORDS))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special)


TOKENIZER = word_tokenizer(bos_token="<bos>", eos_token="<eos>")
CONFIG = CorpusConfig(source="files", files=("x.jsonl",), held_out_fraction=0.2, calibration_fraction=0.1)
TEXTS = [" ".join(f"w{(7 * i + j) % WORDS}" for j in range(5 + i % 9)) for i in range(400)]


def test_packing_by_hand():
    tokens = pack(["w0 w1 w2", "w3", "w4 w5 w6 w7"], TOKENIZER, context_length=5)
    # Stream: 3 4 5 EOS 6 EOS 7 8 9 10 EOS, four to a context; three are left over.
    assert tokens.tolist() == [[BOS, 3, 4, 5, EOS], [BOS, 6, EOS, 7, 8]]
    assert tokens.dtype == np.int32
    assert pack(["w0 w1 w2", "w3", "w4 w5 w6 w7"], TOKENIZER, 5, contexts=1).tolist() == tokens[:1].tolist()


def test_packing_reads_no_more_than_it_needs(monkeypatch):
    monkeypatch.setattr(tokenising, "DOCUMENTS_PER_BATCH", 2)
    read = []

    def texts():
        for i in range(1000):
            read.append(i)
            yield "w0 w1 w2"

    assert pack(texts(), TOKENIZER, 5, contexts=3).shape == (3, 5)
    assert len(read) == 4
    assert np.array_equal(pack(TEXTS, TOKENIZER, 16), pack(iter(TEXTS), TOKENIZER, 16)), "batches leave no trace"


def test_tokenizers_without_bos_or_eos():
    only_eos = word_tokenizer(eos_token="<eos>")
    assert pack(["w0 w1", "w2"], only_eos, 5).tolist() == [[EOS, 3, 4, EOS, 5]]
    only_bos = word_tokenizer(bos_token="<bos>")
    assert pack(["w0 w1", "w2"], only_bos, 5).tolist() == [[BOS, 3, 4, BOS, 5]]
    with pytest.raises(ArtifactError, match="neither BOS nor EOS"):
        pack(["w0 w1"], word_tokenizer(), 4)


def test_text_that_is_too_short():
    with pytest.raises(ArtifactError, match=r"0 tokens fill no context of 8"):
        pack([], TOKENIZER, 8)
    with pytest.raises(ArtifactError, match=r"3 tokens fill no context of 8"):
        pack(["w0 w1"], TOKENIZER, 8)
    assert len(pack(["w0 w1 w2"] * 2, TOKENIZER, 5, contexts=3)) == 2, "as many as there are"


def test_splits_are_disjoint_stable_and_of_the_asked_size():
    texts = [f"document {i}" for i in range(20_000)]
    splits = [split_of(text, CONFIG) for text in texts]
    shares = {split: splits.count(split) / len(texts) for split in SPLITS}
    assert shares == pytest.approx({"train": 0.7, "held_out": 0.2, "calibration": 0.1}, abs=0.01)
    rows = [{"text": text} for text in texts[:500]]
    parts = {split: list(documents_of(split, rows, CONFIG)) for split in SPLITS}
    assert sorted(text for part in parts.values() for text in part) == sorted(texts[:500])
    # What a document's split is depends on its text alone: pinned, or trained SAEs would see held-out text.
    digest = hashlib.sha256(" ".join(splits[:100]).encode()).hexdigest()
    assert digest == PINNED
    wider = CONFIG.model_copy(update={"calibration_fraction": 0.2})
    held_out = {t for t in texts if split_of(t, CONFIG) == "held_out"}
    assert held_out == {t for t in texts if split_of(t, wider) == "held_out"}


PINNED = "b92b195e3db7ae204ec8795b4aba5ec1cd23aecdeb783dda2b886193a017b038"


def test_splits_of_a_corpus_in_hash_order():
    """The packaged corpus is sorted by sha256; a split must not be a stretch of it."""
    texts = sorted((f"document {i}" for i in range(4000)), key=lambda t: hashlib.sha256(t.encode()).digest())
    where = [i / 4000 for i, text in enumerate(texts) if split_of(text, CONFIG) == "held_out"]
    assert np.mean(where) == pytest.approx(0.5, abs=0.03) and np.std(where) == pytest.approx(12**-0.5, abs=0.02)


def write(folder: Path, suffix: str, field: str = "text") -> str:
    file = folder / f"texts{suffix}"
    if suffix == ".txt":
        file.write_text("\n".join(TEXTS) + "\n")
    elif suffix == ".parquet":
        datasets.Dataset.from_dict({field: TEXTS, "number": list(range(len(TEXTS)))}).to_parquet(str(file))
    else:
        file.write_text("".join(json.dumps({field: text, "number": i}) + "\n" for i, text in enumerate(TEXTS)))
    return str(file)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".txt"])
def test_local_files(tmp_path, suffix):
    config = CorpusConfig(source="files", files=(write(tmp_path, suffix),))
    assert [row["text"] for row in load_documents(config)] == TEXTS


def test_another_text_column(tmp_path):
    file = write(tmp_path, ".jsonl", "body")
    named = CorpusConfig(source="files", files=(file,), text_field="body")
    assert len(list(documents_of("train", load_documents(named), named))) > 300


def test_files_that_cannot_be_read(tmp_path):
    def refused(*files: str) -> str:
        with pytest.raises(ArtifactError) as caught:
            config = CorpusConfig(source="files", files=files)
            list(documents_of("train", load_documents(config), config))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    (tmp_path / "table.csv").write_text("text\nhello\n")
    (tmp_path / "bad.parquet").write_bytes(b"no parquet at all")
    absent, csv = str(tmp_path / "absent.jsonl"), str(tmp_path / "table.csv")
    assert f"no such file: {absent}" in refused(absent)
    assert f"corpus.files: {csv} is none of .jsonl, .json, .parquet, .txt" in refused(csv)
    assert refused(str(tmp_path / "bad.parquet")).startswith("corpus.files")


def test_a_hub_dataset_without_network():
    told = r"nobody/nothing at revision 0+ .* cannot be reached; .* set corpus.source to"
    with pytest.raises(ArtifactError, match=told) as caught:
        load_documents(CorpusConfig(source="hub", name="nobody/nothing", revision="0" * 40))
    assert "\n" not in str(caught.value)


def test_the_packaged_corpus_is_cached(package, tmp_path, monkeypatch):
    config = CorpusConfig(source="documentation", packages=(package,))
    first = [dict(row) for row in load_documents(config, tmp_path / "cache")]
    assert [row["text"] for row in first] == [d.text for d in documentation.extract([package])]
    assert {row["kind"] for row in first} == {"module", "class", "function", "compiled"}
    assert len(list((tmp_path / "cache").glob("documentation-*.parquet"))) == 1
    monkeypatch.setattr(documentation, "extract", lambda *_: pytest.fail("extracted again"))
    assert [dict(row) for row in load_documents(config, tmp_path / "cache")] == first
    monkeypatch.setattr(documentation, "versions", lambda packages: {package: "1.3"})
    with pytest.raises(pytest.fail.Exception, match="extracted again"):
        load_documents(config, tmp_path / "cache")


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:100], lambda b: bytes(len(b) // 2) + b[len(b) // 2 :]])
def test_a_damaged_cache_of_the_packaged_corpus_is_made_again(package, tmp_path, damage):
    config = CorpusConfig(source="documentation", packages=(package,))
    first = [dict(row) for row in load_documents(config, tmp_path)]
    (file,) = tmp_path.glob("documentation-*.parquet")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert [dict(row) for row in load_documents(config, tmp_path)] == first
    assert file.read_bytes() == whole


def tiny_profile(file: str) -> Profile:
    return Profile.model_validate(content() | {"corpus": {"source": "files", "files": [file], "held_out_fraction": 0.2,
                                                          "calibration_fraction": 0.2}})  # fmt: skip


def parts(profile: Any) -> tuple[CorpusConfig, DataConfig]:
    """What a profile says about its text."""
    return profile.corpus, profile.data


def test_build_tokens(tmp_path, monkeypatch):
    profile = tiny_profile(write(tmp_path, ".jsonl"))
    manifest = build_tokens(*parts(profile), TOKENIZER, tmp_path / "tokens", tmp_path / "cache")
    assert manifest == read_json(tmp_path / "tokens" / "manifest.json")
    needed = contexts_needed(profile.data)
    assert needed == {"train": -(-1030 // 15) + 1, "held_out": 2, "calibration": 2}
    needed["train"] = 75  # of ten tokens nine are rows: 13.5 of a context
    documents: dict[str, str] = {}
    for split in SPLITS:
        tokens = load_tokens(tmp_path / "tokens", split)
        assert tokens.shape == (needed[split], 16) and tokens.dtype == np.int32 and (tokens[:, 0] == BOS).all()
        assert manifest["splits"][split] == {
            "contexts": needed[split], "sha256": hashlib.sha256(tokens.tobytes()).hexdigest(),
        }  # fmt: skip
        texts = "".join(chr(0x4000 + token) for token in tokens[:, 1:].ravel())
        for document in texts.split(chr(0x4000 + EOS))[1:-1]:
            assert documents.setdefault(document, split) == split, "no document is in two splits"
    rows = (load_tokens(tmp_path / "tokens", "train") > EOS).sum(axis=1)
    assert rows[:-1].sum() < 1000 <= rows.sum(), "enough rows for the store, and no context more than that takes"

    monkeypatch.setattr(corpus, "tokenised", lambda *_: pytest.fail("packed again"))
    assert build_tokens(*parts(profile), TOKENIZER, tmp_path / "tokens", tmp_path / "cache") == manifest
    for changed in (
        profile.model_copy(update={"corpus": profile.corpus.model_copy(update={"held_out_fraction": 0.1})}),
        profile.model_copy(update={"data": profile.data.model_copy(update={"train_tokens": 1001})}),
    ):
        with pytest.raises(pytest.fail.Exception, match="packed again"):
            build_tokens(*parts(changed), TOKENIZER, tmp_path / "tokens", tmp_path / "cache")
    with pytest.raises(pytest.fail.Exception, match="packed again"):
        build_tokens(*parts(profile), word_tokenizer(bos_token="<bos>"), tmp_path / "tokens", tmp_path / "cache")
    (tmp_path / "texts.jsonl").write_text('{"text": "w0"}\n')
    with pytest.raises(pytest.fail.Exception, match="packed again"):
        build_tokens(*parts(profile), TOKENIZER, tmp_path / "tokens", tmp_path / "cache")


def test_the_same_text_gives_the_same_tokens(tmp_path):
    profile = tiny_profile(write(tmp_path, ".jsonl"))
    one, other = (build_tokens(*parts(profile), TOKENIZER, tmp_path / name, tmp_path / "cache") for name in "ab")
    assert one == other
    assert (tmp_path / "a" / "train.npy").read_bytes() == (tmp_path / "b" / "train.npy").read_bytes()


def test_too_little_text_for_the_profile(tmp_path):
    (tmp_path / "few.jsonl").write_text('{"text": "w0 w1"}\n' * 3)
    with pytest.raises(ArtifactError, match=r"data.train_tokens: .* give 0 tokens, needed: 1,000; give"):
        build_tokens(
            *parts(tiny_profile(str(tmp_path / "few.jsonl"))), TOKENIZER, tmp_path / "tokens", tmp_path / "cache"
        )
    assert not (tmp_path / "tokens" / "manifest.json").exists()


def test_compressed_files_are_read_as_what_they_hold(tmp_path):
    """The Pile's files are .jsonl.zst."""
    lines = "".join(f'{{"text": "w{i} w{i}"}}\n' for i in range(5))
    (tmp_path / "pile.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    for name in ("more.jsonl.gz", "UPPER.JSONL.GZ"):
        (tmp_path / name).write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "more.jsonl.xz").write_bytes(lzma.compress(lines.encode()))
    (tmp_path / "more.jsonl.bz2").write_bytes(bz2.compress(lines.encode()))
    for name in ("pile.jsonl.zst", "more.jsonl.gz", "more.jsonl.xz", "more.jsonl.bz2", "UPPER.JSONL.GZ"):
        config = CorpusConfig(source="files", files=(str(tmp_path / name),))
        assert [row["text"] for row in load_documents(config)] == [f"w{i} w{i}" for i in range(5)]


def sizes(file: str, train_tokens: int = 1000) -> Any:
    """As much of a profile as tokens depend on."""
    return SimpleNamespace(
        corpus=CorpusConfig(source="files", files=(file,), held_out_fraction=0.2, calibration_fraction=0.2),
        data=DataConfig(context_length=16, train_tokens=train_tokens, held_out_contexts=2, calibration_contexts=2,
                        window=4, batch_tokens=16, shard_rows=256),
    )  # fmt: skip


def token_files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_what_does_not_change_the_tokens_does_not_change_their_key(tmp_path):
    profile = sizes(write(tmp_path, ".jsonl"))
    manifest = build_tokens(*parts(profile), TOKENIZER, tmp_path / "tokens", tmp_path / "cache")
    other = {"window": 8, "batch_tokens": 64, "shard_rows": 17, "stream_seed": 5}
    profile.data = profile.data.model_copy(update=other)
    assert build_tokens(*parts(profile), TOKENIZER, tmp_path / "tokens", tmp_path / "cache") == manifest
    profile.data = profile.data.model_copy(update={"train_tokens": 1001})
    assert build_tokens(*parts(profile), TOKENIZER, tmp_path / "tokens", tmp_path / "cache")["key"] != manifest["key"]


def test_tokens_on_disk_are_what_packing_in_memory_gives(tmp_path, monkeypatch):
    """`pack` is the plain way, one split at a time and all of it in memory."""
    monkeypatch.setattr(tokenising, "DOCUMENTS_PER_BATCH", 7)
    profile = sizes(write(tmp_path, ".jsonl"))
    build_tokens(*parts(profile), TOKENIZER, tmp_path / "tokens", tmp_path / "cache")
    contexts_of = {split: len(load_tokens(tmp_path / "tokens", split)) for split in SPLITS}
    for split, contexts in contexts_of.items():
        documents = documents_of(split, load_documents(profile.corpus), profile.corpus)
        assert np.array_equal(load_tokens(tmp_path / "tokens", split), pack(documents, TOKENIZER, 16, contexts))


def peak_memory(work: Callable[[], object]) -> int:
    """Most bytes that Python and NumPy held at once during `work`."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenising, "DOCUMENTS_PER_BATCH", 16)
    text = " ".join(f"w{i % WORDS}" for i in range(50))
    monkeypatch.setattr(corpus, "load_documents", lambda *_: ({"text": f"{text} w{i % WORDS}"} for i in range(10**6)))
    file = write(tmp_path, ".jsonl")

    def peak(train_tokens: int) -> int:
        profile = sizes(file, train_tokens)
        # These fractions are enough for the few held-out contexts in either case.
        return peak_memory(lambda: build_tokens(*parts(profile), TOKENIZER, tmp_path / f"{train_tokens}", tmp_path))

    peak(2_000)  # whatever the first call loads
    assert peak(200_000) < peak(10_000) + 100_000, "200,000 tokens are 800 kB"
    assert load_tokens(tmp_path / "200000", "train").nbytes > 800_000
