"""The model, the text and their sizes: what a profile says about its data."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from sae_lib.data import hub
from sae_lib.data.gguf import Wheel
from sae_lib.util.errors import ArtifactError
from sae_lib.util.strict import Seed, Strict


class ModelConfig(Strict):
    """The language model and the layer whose residual stream the SAEs read."""

    name: str = Field(min_length=1)
    """`pocket` (ships with the project), a hub id, a local folder or a GGUF file; with `wheel`, what to call it."""
    wheel: Wheel | None = None
    """The wheel of the package index whose GGUF file is the model."""
    revision: str | None = Field(None, validate_default=True)
    """Commit, tag or branch of a hub id; left out, the commit that `hub.yaml` pins."""
    layer: int = Field(ge=0)
    """The block, counted from 0, after which the residual stream is read."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    _pinned = field_validator("revision")(lambda given, of: hub.MODEL.read_revision(of.data.get("name"), given))

    def check_layer(self, depth: int) -> None:
        """Raises ArtifactError when the model, of `depth` blocks, has no such block."""
        if self.layer >= depth:
            has = f"{self.name}, which has {depth} layers: 0-{depth - 1}"
            raise ArtifactError(f"model.layer: {self.layer} is beyond {has}")


class CorpusConfig(Strict):
    """Where text comes from."""

    source: Literal["documentation", "hub", "files"]
    packages: tuple[str, ...] = ()
    name: str | None = None
    revision: str | None = Field(None, validate_default=True)
    """Commit, tag or branch of `name`; left out, the commit that `hub.yaml` pins. Needed where it pins none: the commit
    of a dataset is in no key, so that nothing would notice other text."""
    subset: str | None = None
    split: str = "train"
    files: tuple[str, ...] = ()
    text_field: str = "text"
    lessons_fraction: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the training contexts that are spelling lessons (`spelling.py`), as in the packaged model's own text."""
    held_out_fraction: float = Field(0.05, gt=0.0, lt=0.5)
    """Share of the documents that metrics are computed on."""
    calibration_fraction: float = Field(0.05, gt=0.0, lt=0.5)
    """Share of the documents on which sparsity is matched between methods; no metric is computed on it."""

    _pinned = field_validator("revision")(lambda given, of: hub.CORPUS.read_revision(of.data.get("name"), given))

    @model_validator(mode="after")
    def _has_source(self) -> "CorpusConfig":
        needed = {"documentation": "packages", "hub": "name", "files": "files"}[self.source]
        if not getattr(self, needed):
            raise ValueError(f"source '{self.source}' needs corpus.{needed}")
        if self.source == "hub" and self.revision is None:
            raise ValueError(
                f"{self.name} is not pinned in sae_lib/data/hub.yaml, so it needs a revision: a commit from "
                f"{hub.CORPUS.page}/{self.name}/commits/main, or main to read whatever is newest"
            )
        return self


class DataConfig(Strict):
    """Sizes of the activation store and of its batches."""

    context_length: int = Field(128, ge=8)
    train_tokens: int = Field(ge=1)
    """Rows of the activation store (BOS and EOS not counted)."""
    held_out_contexts: int = Field(ge=1)
    calibration_contexts: int = Field(ge=1)
    window: int = Field(ge=1)
    """Consecutive tokens that stay together in a batch; 1 is the ordinary shuffle of single tokens."""
    batch_tokens: int = Field(ge=1)
    shard_rows: int = Field(ge=1)
    masked_tokens: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the training tokens in whose place the language model reads the one that opens a context, which is no
    row (masked regularisation, arXiv 2604.06495, whose token and share were not at hand)."""
    stream_seed: Seed = 0
    """Order of the windows: the same for every method and seed."""

    @model_validator(mode="after")
    def _whole_windows(self) -> "DataConfig":
        if self.batch_tokens % self.window:
            nearest = max(1, round(self.batch_tokens / self.window)) * self.window
            raise ValueError(f"batch_tokens {self.batch_tokens} is no multiple of window {self.window}; try {nearest}")
        if self.batch_tokens > self.train_tokens:
            raise ValueError(f"batch_tokens {self.batch_tokens} is above train_tokens {self.train_tokens}")
        return self
