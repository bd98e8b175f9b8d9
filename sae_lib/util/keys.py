"""Keys of results: what a result was made from, so that it is made again when that changes, and only then.

A stage turns inputs into a result that is kept (tokens, an SAE, a score) and declares a version, which is raised
whenever it gives other results; `tests/test_stage_code.py` notices code that changed without it.
"""

from functools import cache
from typing import NamedTuple

from sae_lib.util.environment import locked_pins
from sae_lib.util.files import json_key

# What computes, or reads and writes what is computed with.
NUMERICAL = (
    "datasets", "llvmlite", "numba", "numpy", "pandas", "pyarrow", "safetensors", "scikit-learn", "scipy", "tokenizers",
    "torch", "transformers",
)  # fmt: skip


class Stage(NamedTuple):
    """What makes results of one kind. Raise `version` when it makes other results of the same inputs."""

    name: str
    version: int


@cache
def numerical_pins() -> dict[str, str]:
    """The versions in `requirements.lock` of the packages that results depend on, as this process first read them."""
    pins = locked_pins()
    return {name: pins[name] for name in NUMERICAL if name in pins}


def result_key(stage: Stage, *made_from: object) -> str:
    """Hexadecimal sha256 of the stage, the packages that it computes with, and what a result was made from: values that
    JSON can hold; whatever it depends on, and nothing else."""
    return json_key([*stage, numerical_pins(), *made_from])
