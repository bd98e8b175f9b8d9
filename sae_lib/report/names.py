"""What methods and metrics are called, in which order they stand, and which direction of a metric is better."""

from sae_lib.mechanisms import METHODS as METHOD
from sae_lib.mechanisms import methods
from sae_lib.metrics import scores as _scores  # noqa: F401 (registers them)
from sae_lib.metrics.registry import COLUMNS, Column
from sae_lib.metrics.stability import seeds
from sae_lib.metrics.toy import score as toy

# What methods are called, in the order of every table and figure; those of toy data alone.
METHODS: dict[str, str] = {key: METHOD[key].name for key in methods("main", "field", "as written", "control")}
TOY_METHODS: dict[str, str] = {key: METHOD[key].name for key in methods("toy")}
MAIN_METHODS = methods("main")
BASELINE = "standard"  # what the other methods are compared with

# The three mechanisms of TemporalSAE: column of evaluation.parquet -> name.
MECHANISMS = {"temporal": "temporal penalty", "resampling": "resampling", "gradient_scaling": "gradient scaling"}
# Shown in the place of what a language model does not allow.
NOT_MEASURABLE = "not measurable on this model"

# Columns of the result rows, those of the pairs of seeds and of the toys: how each is shown.
METRICS = COLUMNS
METRICS.update({"final_loss": Column("loss", "lower", 2), **seeds.SHOWN, **toy.SHOWN})


def method_name(method: str) -> str:
    """The display name of a method; an unknown one is shown as it is."""
    return (METHODS | TOY_METHODS).get(method, method.replace("_", " "))


def in_order(methods: list[str]) -> list[str]:
    """Methods in the order of `METHODS`, unknown ones last and sorted.

    >>> in_order(["atm", "zeta", "topk"])
    ['topk', 'atm', 'zeta']
    """
    known = [*METHODS, *TOY_METHODS]
    return sorted(set(methods), key=lambda method: (known.index(method) if method in known else len(known), method))
