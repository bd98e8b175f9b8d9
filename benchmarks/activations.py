"""Text, tokens and residual streams of the packaged language model, for the environment of the oracles.

The corpus is the documentation of packages that this environment has too; its versions differ from those of
`requirements.lock`, so the text is not that of the `pocket` profile, and the SAEs trained on it are their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_lib.data.activations import ActivationStore
from sae_lib.data.config import CorpusConfig, ModelConfig
from sae_lib.data.corpus import documents_of, load_documents
from sae_lib.data.harvest import harvest, tokens_sha256
from sae_lib.data.language_model import LanguageModel
from sae_lib.data.spelling import Lessons
from sae_lib.data.tokens import pack

MODEL = ModelConfig(name="pocket", layer=2, dtype="float32", device="cpu")
CORPUS = CorpusConfig(
    source="documentation", packages=("numpy", "scikit-learn", "scipy", "torch"), lessons_fraction=0.2
)
CONTEXT_LENGTH = 128


class Text(NamedTuple):
    """Contexts of token ids, `[context, position]`; a fifth of the training contexts are spelling lessons."""

    train: NDArray[np.int32]
    held_out: NDArray[np.int32]


def load_text(lm: LanguageModel, folder: Path, train: int, held_out: int) -> Text:
    """So many contexts of each split; the extracted text is kept in `folder`."""
    rows = load_documents(CORPUS, folder)
    packed = pack(documents_of("train", rows, CORPUS), lm.tokenizer, CONTEXT_LENGTH, train)
    Lessons(lm.tokenizer, len(packed), round(len(packed) * CORPUS.lessons_fraction)).replace(packed, 0)
    return Text(packed, pack(documents_of("held_out", rows, CORPUS), lm.tokenizer, CONTEXT_LENGTH, held_out))


def load_store(lm: LanguageModel, text: Text, folder: Path) -> ActivationStore:
    """Residual streams of the training contexts, harvested once for each text."""
    return harvest(lm, text.train, folder / f"store-{tokens_sha256(text.train)[:16]}")
