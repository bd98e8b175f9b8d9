"""The texts that a configuration asks for, whichever source they come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lib.data import corpus as corpora
from sae_lib.data import documentation
from sae_lib.metrics.probing.config import ProbingConfig
from sae_lib.metrics.probing.datasets import HUB_DATASETS, file_texts, hub_texts
from sae_lib.metrics.probing.documentation import DATASETS, documentation_texts
from sae_lib.metrics.probing.tasks import LabelledTexts, tasks_of, tokenise
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import file_sha256

if TYPE_CHECKING:
    from sae_lib.data.config import CorpusConfig


def known_datasets(config: ProbingConfig) -> tuple[str, ...]:
    """Names of the datasets that the configuration asks for.

    Raises ArtifactError: a name that its source does not have.
    """
    known = {"documentation": DATASETS, "hub": tuple(HUB_DATASETS), "files": tuple(config.files)}[config.source]
    for name in config.datasets:
        if name not in known:
            raise ArtifactError(
                f"probing.datasets: source '{config.source}' has no dataset '{name}'; it has {', '.join(known)}"
            )
    return config.datasets or known


def text_key(config: ProbingConfig, corpus: CorpusConfig | None) -> Any:
    """What the texts depend on beside the configuration."""
    if config.source == "documentation":
        if corpus is None or corpus.source != "documentation":
            raise ArtifactError(
                "probing.source: 'documentation' needs corpus.source documentation; set it to hub or files"
            )
        return [corpus.model_dump(), documentation.versions(corpus.packages)]
    paths = [Path(path) for files in config.files.values() for path in (files.train, files.test) if path]
    return {str(path): file_sha256(path) for path in paths if path.is_file()}


def load_part(
    names: Sequence[str], config: ProbingConfig, tokenizer: Any, corpus: CorpusConfig | None, cache: Path | None
) -> list[LabelledTexts]:
    """The texts of the datasets `names`, to be probed together: all of the packaged corpus, or one other dataset.

    Raises ArtifactError: text that cannot be read, a class with too few texts.
    """
    if config.source == "documentation":
        assert corpus is not None
        documents = (
            row
            for row, text in corpora.Texts(corpora.load_documents(corpus, cache), corpus.text_field)
            if text and corpora.split_of(text, corpus) == "held_out"
        )
        return documentation_texts(documents, tokenizer, config, tuple(names))
    (name,) = names
    splits = hub_texts(name, config) if config.source == "hub" else file_texts(name, config.files[name], config)
    train, test = (
        {label: tokenise(texts, tokenizer, config.context) for label, texts in classes.items()} for classes in splits
    )
    return [LabelledTexts(name, train, test, tasks_of(tuple(train)))]
