"""The methods that are compared, each registered in the file of its variant or mechanism. `METHODS` is complete once
`sae_lib.mechanisms` is imported, so import it from there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

Shown = Literal["main", "field", "as written", "control", "toy"]
GREY = "#949494"


class Look(NamedTuple):
    """Colour, marker and line style of a method: each of the three alone tells the main methods apart."""

    color: str
    marker: str
    line: str | tuple[int, tuple[int, ...]]


@dataclass(frozen=True)
class Method:
    """A variant with mechanisms and a recipe."""

    key: str
    name: str
    """In tables and figures."""
    recipe: Mapping[str, Any]
    """Values of its configuration, as its authors give them; profiles override single ones."""
    look: Look
    shown: Shown = "main"
    """In the main table; beside it (the rest of the field, where a profile names it); only with the papers' own
    coefficients; as a control under it; or on toy data alone."""
    at_width: Callable[[int], dict[str, Any]] | None = None
    """What of the recipe depends on d_sae."""
    toy_rate: float | None = None
    """Learning rate at which it settles on a toy of 20 latents within some hundred steps; None: not trained there."""
    papers: tuple[str, ...] = ()
    """Who described it, for the README of an export."""
    toy: Mapping[str, Any] = field(default_factory=dict)
    """Values of its configuration that a toy of 20 latents needs."""


METHODS: dict[str, Method] = {}


def register(method: Method) -> None:
    """Add a method. Those of one kind stand in the order in which they are registered."""
    METHODS[method.key] = method


def methods(*shown: Shown) -> tuple[str, ...]:
    """The methods in the order of every table and figure; with `shown`, those that are shown so."""
    kinds = shown or get_args(Shown)
    return tuple(key for kind in kinds for key, method in METHODS.items() if method.shown == kind)
