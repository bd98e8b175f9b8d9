"""The same texts from the hub datasets as SAEBench's own functions choose (where SAEBench is installed)."""

from typing import Any

import datasets
import pandas as pd
import pytest

from sae_lib.metrics.probing.config import ProbingConfig
from sae_lib.metrics.probing.datasets import HUB_DATASETS, hub_texts
from tests.metrics.test_probing_hub import LocalHub, hub_tables

pytest.importorskip("sae_bench")
NAMES = {
    "amazon_reviews": "canrager/amazon_reviews_mcauley_1and5",
    "amazon_reviews_sentiment": "canrager/amazon_reviews_mcauley_1and5_sentiment",
}


@pytest.mark.parametrize("name", HUB_DATASETS)
def test_the_texts_of_every_hub_dataset(name, tmp_path, monkeypatch):
    from sae_bench.sae_bench_utils import dataset_info, dataset_utils

    tables = hub_tables()

    def load_dataset(path: str, config: str | None = None, **options: Any) -> Any:
        table = tables[path if config is None else f"{path}/{config}"]
        if path == "codeparrot/github-code":  # as its loading script names and filters the columns
            languages = {".c": "C", ".h": "C", ".py": "Python", ".html": "HTML", ".java": "Java"}
            languages |= {".php": "PHP", ".phpt": "PHP"}
            found = table["path"].map(lambda file: languages.get(file[file.rindex(".") :]))
            table = pd.DataFrame({"code": table["content"], "language": found}).dropna()
        if "split" in options:
            return table.to_dict("records")
        return datasets.DatasetDict({split: datasets.Dataset.from_pandas(table) for split in ("train", "test")})

    monkeypatch.setattr(dataset_utils, "load_dataset", load_dataset)
    full = NAMES.get(name, HUB_DATASETS[name].repository + (name[-11:] if "class_set" in name else ""))
    classes = dataset_info.chosen_classes_per_dataset[full]
    expected = dataset_utils.get_multi_label_train_test_data(full, 16, 8, 42)
    monkeypatch.setattr(datasets, "load_dataset", LocalHub(tmp_path))
    ours = hub_texts(name, ProbingConfig(train_per_task=16, test_per_task=8))
    assert tuple(ours[0]) == tuple(classes)
    for mine, theirs in zip(ours, expected, strict=True):
        assert mine == dataset_utils.filter_dataset(theirs, classes)
