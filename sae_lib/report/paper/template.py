"""The prose as a Jinja template of Typst markup: every number comes from an expression, none is typed.

`{{ main.atm.absorption_fraction }}` prints a result, `{% if (a - b).falls %}` chooses the wording that the results
support. What an expression prints is escaped, so a name or a claim cannot turn into markup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined, TemplateError, TemplateSyntaxError

from sae_lib.report.paper.values import NOTHING, Change, Quantity
from sae_lib.util.errors import ArtifactError

PROSE = Path(__file__).parent / "paper.typ"
_SPECIAL = re.compile(r"([\\#$*_`<>@\[\]~=/\"'+-])")

# Digits that are no results: names, places in the papers, references.
_PLACE = r"\d+(?:\.\d+)?"
ALLOWED_TEXT = (
    r"Gemma-2-2b",
    r"\bL[01]\b",
    r"\bF1\b",
    r"\bSHA-256\b",
    r"\b[TM]-\d\d\b",
    r"#eq\[\(\d\)\]",
    r"SAEBench \d+\.\d+\.\d+",
    rf"\b(?:[Ee]q\.|[Ss]ections?|[Tt]able|[Ff]igure|[Rr]un) {_PLACE}(?:(?:, | and | to ){_PLACE})*",
    r"\((?:19|20)\d\d\)",
)
# Constants of the papers' equations and of the metrics' definitions.
ALLOWED_IN_MATH = {"0", "1", "2", "3", "5", "10", "100", "500", "0.1", "0.4", "0.99", "6", "26", "8"}
# In expressions: ids of claims. A digit inside a name such as `probing_k1` is part of it.
_CLAIM_ID = re.compile(r"[TM]-\d\d")
_MATH = re.compile(r"\$[^$]*\$")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_LITERAL = re.compile(r"(?<!\w)\d")


def typed_numbers(source: str) -> list[str]:
    """The numbers that somebody typed into a template, each as 'line: number'; empty when there are none.

    Looked at are the text outside expressions, its formulas (constants of equations are allowed), and the literals
    inside expressions.

    >>> typed_numbers("ATM absorbs {{ main.atm.absorption_fraction }}, Standard 0.148; see Table 1.")
    ['1: 0.148']
    """
    found = []
    for line, kind, value in Environment().lex(source):
        if kind == "data":
            found += [(line + value[:at].count("\n"), number) for at, number in _in_text(value)]
        elif kind in ("integer", "float") or (kind == "string" and _LITERAL.search(_CLAIM_ID.sub("", value))):
            found.append((line, value))
    return [f"{line}: {number}" for line, number in found]


def _in_text(text: str) -> list[tuple[int, str]]:
    def blank(match: re.Match[str]) -> str:
        return " " * len(match[0])

    found = []
    for formula in _MATH.finditer(text):
        numbers = _NUMBER.finditer(formula[0])
        found += [(formula.start() + n.start(), n[0]) for n in numbers if n[0] not in ALLOWED_IN_MATH]
    rest = _MATH.sub(blank, text)
    for pattern in ALLOWED_TEXT:
        rest = re.sub(pattern, blank, rest)
    return sorted(found + [(n.start(), n[0]) for n in _NUMBER.finditer(rest)])


def rendered(source: str, names: dict[str, Any]) -> str:
    """The template filled in.

    Raises:
        ArtifactError: a number is typed by hand, or a name is unknown; the line is named.
    """
    if typed := typed_numbers(source):
        raise ArtifactError(f"paper: numbers typed by hand, take them from the results: line {'; line '.join(typed)}")
    environment = Environment(
        undefined=StrictUndefined, finalize=_printed, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"versus": versus, "listed": listed, "percent": percent, "whole": int}
    try:
        return environment.from_string(source).render(names)
    except TemplateError as error:
        line = error.lineno if isinstance(error, TemplateSyntaxError) else None
        raise ArtifactError(f"paper: {error.message or error}" + (f", line {line}" if line else "")) from None


def versus(change: Change, less: str, more: str, same: str, unknown: str = "not comparably (too few seeds) to") -> str:
    """The words for the sign of a difference."""
    if not change.known:
        return unknown
    return less if change.falls else more if change.rises else same


def listed(items: Sequence[str], nothing: str = "none") -> str:
    """'a', 'a and b', 'a, b and c'."""
    if not items:
        return nothing
    *head, last = items
    return f"{', '.join(head)} and {last}" if head else last


def percent(quantity: Quantity) -> str:
    """A share's mean in per cent."""
    return f"{quantity.values.mean():.0%}".replace("%", " %") if quantity.known else NOTHING


def escaped(text: str) -> str:
    """Text as Typst markup that shows it unchanged."""
    return _SPECIAL.sub(r"\\\1", text)


def _printed(value: Any) -> str:
    """What an expression puts into the text."""
    if isinstance(value, StrictUndefined):
        return str(value)  # raises, naming what is undefined
    if isinstance(value, float):
        return np.format_float_positional(value, trim="-")
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, (str, Quantity, Change)):
        return escaped(str(value))
    raise ArtifactError(f"paper: an expression gives {type(value).__name__}, which is no text and no number")
