"""Labelled texts from local files."""

from pathlib import Path

import pandas as pd

from sae_lib.errors import ArtifactError, first_line
from sae_lib.metrics.probing.config import LabelledFiles, ProbingConfig
from sae_lib.metrics.probing.datasets import Classes, sampled_texts, shuffled_split


def file_texts(name: str, files: LabelledFiles, config: ProbingConfig) -> tuple[Classes, Classes]:
    """Training and test texts by class from local files; each class of the training file is one.

    Raises:
        ArtifactError: a file that is missing or cannot be read, a column that is not there, a class with too few
        texts.
    """
    train = _read_file(name, files.train, files)
    labels = sorted(train["label"].unique())
    if files.test is None:
        return shuffled_split(
            name, {label: train["text"][train["label"] == label].tolist() for label in labels}, config
        )
    test = _read_file(name, files.test, files)

    def sample(table: pd.DataFrame, size: int, split: str) -> Classes:
        where = f"{name}, {split} texts"
        return {label: sampled_texts(table, "label", label, size // 2, config.seed, where) for label in labels}

    return sample(train, config.train_per_task, "training"), sample(test, config.test_per_task, "test")


def _read_file(name: str, path: str, files: LabelledFiles) -> pd.DataFrame:
    where = f"probing.files.{name}"
    if not Path(path).is_file():
        raise ArtifactError(f"{where}: no such file: {path}")
    try:
        table = (
            pd.read_parquet(path) if Path(path).suffix == ".parquet" else pd.read_json(path, lines=True, dtype=False)
        )
    except Exception as error:
        reason = first_line(error)
        raise ArtifactError(f"{where}: {path} is no readable .jsonl or .parquet file ({reason})") from error
    for column in (files.text, files.label):
        if column not in table:
            raise ArtifactError(
                f"{where}: {path} has no column '{column}'; it has {', '.join(map(str, table.columns))}"
            )
    table = table[[files.text, files.label]].dropna()
    return pd.DataFrame({"text": table[files.text], "label": table[files.label].astype(str)})
