"""SAEBench's datasets, read through `datasets` from local files of the same schema, and labelled local files."""

import json
import random
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from sae_lib.metrics.probing.config import HUB_REVISIONS, LabelledFiles, ProbingConfig
from sae_lib.metrics.probing.datasets import HUB_DATASETS, file_texts, hub_texts, known_datasets
from sae_lib.metrics.probing.tasks import tasks_of
from sae_lib.util.errors import ArtifactError

CONFIG = ProbingConfig(train_per_task=16, test_per_task=8)
SHARED = Path(__file__).parents[3] / "shared" / "data"


def hub_tables() -> dict[str, pd.DataFrame]:
    """Rows in the schema of each hub dataset: text that names its own labels."""
    rng = random.Random(0)
    bios, reviews, news, code = [], [], [], []
    for i in range(900):
        profession, gender = rng.randrange(28), rng.randrange(2)
        bios.append({"hard_text": f"bio {i} {profession} {gender}", "profession": profession, "gender": gender})
    for i in range(600):
        category, rating = rng.randrange(8), rng.choice([1.0, 5.0])
        reviews.append({"text": f"review {i} {category} {rating}", "category": category, "rating": rating})
    for i in range(160):
        news.append({"text": f"news {i} {i % 4}", "label": i % 4})
    endings = [".c", ".h", ".py", ".html", ".java", ".php", ".phpt", ".rs", ".cs"]
    for i in range(900):
        ending = rng.choice(endings)
        body = "/* licence */".ljust(150, "*") + f"code {i} {ending} ".ljust(rng.choice([300, 400]), "x")
        code.append({"content": body, "repo_name": "r", "path": f"src/f{i}{ending}", "license": "mit", "size": 1})
    tables = {
        "LabHC/bias_in_bios": pd.DataFrame(bios),
        "canrager/amazon_reviews_mcauley_1and5": pd.DataFrame(reviews),
        "fancyzhx/ag_news": pd.DataFrame(news),
        "codeparrot/github-code": pd.DataFrame(code),
    }
    for pair in ("en-fr", "fr-it", "de-en", "es-fr", "nl-pt"):
        rows = [{"translation": {x: f"{x} sentence {i}" for x in pair.split("-")}} for i in range(40)]
        tables[f"Helsinki-NLP/europarl/{pair}"] = pd.DataFrame(rows)
    return tables


class LocalHub:
    """`datasets.load_dataset` on parquet files of those tables; remembers what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.load = datasets.load_dataset
        self.asked: list[tuple[str, str | None]] = []
        for name, table in hub_tables().items():
            file = folder / f"{name}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            table.to_parquet(file)

    def __call__(self, name: str, config: str | None = None, **options: Any) -> Any:
        if name == "parquet":
            repository, revision = (
                options.pop("data_files").removeprefix("hf://datasets/").split("/data/")[0].split("@")
            )
        else:
            repository, revision = name, options.pop("revision")
        self.asked.append((repository, revision))
        file = str(self.folder / (repository if config is None else f"{repository}/{config}")) + ".parquet"
        splits = {"train": file} if "split" in options else {"train": file, "test": file}
        return self.load("parquet", data_files=splits, cache_dir=str(self.folder / "cache"), **options)


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> LocalHub:
    return LocalHub(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def hub(tables, monkeypatch) -> LocalHub:
    monkeypatch.setattr(datasets, "load_dataset", tables)
    return tables


def test_eight_datasets_of_35_tasks():
    assert len(HUB_DATASETS) == 8
    assert sum(len(tasks_of(dataset.classes)) for dataset in HUB_DATASETS.values()) == 35
    # Of two classes, either against the other is the same task.
    assert tasks_of(("1.0", "5.0")) == ("1.0",)
    assert {dataset.repository for dataset in HUB_DATASETS.values()} == set(HUB_REVISIONS)
    assert known_datasets(ProbingConfig(source="hub")) == tuple(HUB_DATASETS)


@pytest.mark.parametrize("name", HUB_DATASETS)
def test_half_of_a_task_for_each_class_at_the_revision_asked_for(hub, name):
    dataset = HUB_DATASETS[name]
    config = CONFIG.model_copy(update={"revisions": {dataset.repository: "abc123"}})
    hub.asked.clear()
    train, test = hub_texts(name, config)
    assert set(hub.asked) == {(dataset.repository, "abc123")}
    assert tuple(train) == tuple(test) == dataset.classes
    assert {len(texts) for texts in train.values()} == {8} and {len(texts) for texts in test.values()} == {4}
    assert {len(set(texts)) for texts in train.values()} == {8}
    assert hub_texts(name, config) == (train, test)
    assert hub_texts(name, config.model_copy(update={"seed": 1})) != (train, test)


def test_bios_are_of_the_profession_and_of_both_genders_evenly(hub):
    train, _ = hub_texts("bias_in_bios_class_set2", CONFIG)
    for profession, texts in train.items():
        assert {text.split()[2] for text in texts} == {profession}
        assert [text.split()[3] for text in texts] == ["0"] * 4 + ["1"] * 4


def test_reviews_by_category_hold_both_ratings_evenly_and_by_rating_one(hub):
    train, _ = hub_texts("amazon_reviews", CONFIG)
    assert all([text.split()[3] for text in texts] == ["1.0"] * 4 + ["5.0"] * 4 for texts in train.values())
    assert all({text.split()[2] for text in texts} == {category} for category, texts in train.items())
    train, _ = hub_texts("amazon_reviews_sentiment", CONFIG)
    assert all({text.split()[3] for text in texts} == {rating} for rating, texts in train.items())


def test_sentences_and_code_are_in_their_language_and_never_in_both_splits(hub):
    train, test = hub_texts("europarl", CONFIG)
    assert all({text.split()[0] for text in texts} == {language} for language, texts in train.items())
    assert not any(set(train[language]) & set(test[language]) for language in train)
    train, test = hub_texts("github-code", CONFIG)
    endings = {language: {text.split()[2] for text in train[language] + test[language]} for language in train}
    assert endings["C"] <= {".c", ".h"} and endings["PHP"] <= {".php", ".phpt"} and endings["Python"] == {".py"}
    # The licence is cut off, and only files that hold a context beyond it are taken.
    assert all(text.startswith("code ") and len(text) == 400 for texts in train.values() for text in texts)


def test_a_dataset_that_cannot_be_read(monkeypatch):
    def no_network(*arguments: Any, **options: Any) -> Any:
        raise ConnectionError("Couldn't reach the Hub\nlong trace")

    monkeypatch.setattr(datasets, "load_dataset", no_network)
    with pytest.raises(ArtifactError) as caught:
        hub_texts("ag_news", CONFIG)
    message = str(caught.value)
    assert "\n" not in message and "long trace" not in message
    assert "fancyzhx/ag_news at revision" in message and "the hub cannot be reached" in message
    assert "probing.source" in message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ag_news", "fancyzhx/ag_news, train texts, class 0: 40 texts, needed: 200"),
        ("amazon_reviews_sentiment", r"train texts, class 1.0: \d+ texts, needed: 2000"),
        ("bias_in_bios_class_set1", r"LabHC/bias_in_bios, train texts, class 0 with gender 0: \d+ texts, needed"),
        ("europarl", "Helsinki-NLP/europarl, class en: 40 texts, needed: "),
        ("github-code", r"codeparrot/github-code, class C: \d+ texts, needed: "),
    ],
)
def test_a_class_that_is_too_small_is_named(hub, name, message):
    size = 4000 if name == "amazon_reviews_sentiment" else 400
    with pytest.raises(ArtifactError, match=message):
        hub_texts(name, ProbingConfig(train_per_task=size, test_per_task=8))


def test_unknown_datasets():
    with pytest.raises(ArtifactError, match=r"source 'hub' has no dataset 'agnews'; it has .*ag_news"):
        known_datasets(ProbingConfig(source="hub", datasets=("agnews",)))
    files = {"mine": LabelledFiles(train="x.jsonl")}
    with pytest.raises(ArtifactError, match="source 'files' has no dataset 'yours'; it has mine"):
        known_datasets(ProbingConfig(source="files", files=files, datasets=("yours",)))
    assert known_datasets(ProbingConfig(source="documentation", datasets=("kind",))) == ("kind",)


def rows_of(count: int, name: str) -> pd.DataFrame:
    return pd.DataFrame({"body": [f"{name} {i} {i % 3}" for i in range(count)], "topic": [i % 3 for i in range(count)]})


def test_files_with_a_test_file_and_without(tmp_path):
    rows_of(60, "train").to_json(tmp_path / "train.jsonl.gz", orient="records", lines=True)
    rows_of(30, "test").to_parquet(tmp_path / "test.parquet")
    columns = {"text": "body", "label": "topic"}
    both = LabelledFiles(train=str(tmp_path / "train.jsonl.gz"), test=str(tmp_path / "test.parquet"), **columns)
    train, test = file_texts("mine", both, CONFIG)
    assert list(train) == list(test) == ["0", "1", "2"]
    assert {len(texts) for texts in train.values()} == {8} and {len(texts) for texts in test.values()} == {4}
    for label in train:
        assert {(text.split()[0], text.split()[2]) for text in train[label]} == {("train", label)}
        assert {(text.split()[0], text.split()[2]) for text in test[label]} == {("test", label)}
    one = both.model_copy(update={"test": None})
    train, test = file_texts("mine", one, CONFIG)
    assert not any(set(train[label]) & set(test[label]) for label in train)
    assert {len(texts) for texts in test.values()} == {4}
    with pytest.raises(ArtifactError, match="mine, class 0: 20 texts, needed: 24"):
        file_texts("mine", one, ProbingConfig(train_per_task=40, test_per_task=8))
    with pytest.raises(ArtifactError, match="mine, test texts, class 0: 10 texts, needed: 20"):
        file_texts("mine", both, ProbingConfig(train_per_task=8, test_per_task=40))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ArtifactError, match=r"probing.files.mine: no such file: .*gone.jsonl"):
        file_texts("mine", LabelledFiles(train=str(tmp_path / "gone.jsonl")), CONFIG)
    (tmp_path / "bad.jsonl").write_text("{not json")
    with pytest.raises(ArtifactError, match=r"bad\.jsonl cannot be read after row 0"):
        file_texts("mine", LabelledFiles(train=str(tmp_path / "bad.jsonl")), CONFIG)
    (tmp_path / "other.jsonl").write_text(json.dumps({"text": "a", "class": 1}) + "\n")
    with pytest.raises(ArtifactError, match="has no column 'label' with labels; it has text, class"):
        file_texts("mine", LabelledFiles(train=str(tmp_path / "other.jsonl")), CONFIG)


@pytest.mark.skipif(not (SHARED / "ag-news").is_dir(), reason="labelled texts are not beside the repository")
def test_real_news():
    files = LabelledFiles(
        train=str(SHARED / "ag-news/train.jsonl.xz"), test=str(SHARED / "ag-news/test.jsonl.xz"), text="text"
    )
    train, test = file_texts("ag_news", files, ProbingConfig(train_per_task=400, test_per_task=100))
    assert set(train) == {"World", "Sports", "Business", "Sci/Tech"}
    assert {len(set(texts)) for texts in train.values()} == {200}
    assert {len(texts) for texts in test.values()} == {50}
