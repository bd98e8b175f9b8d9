"""The static browser: one HTML file with its data, style and script inside, which opens from disk without network."""

from __future__ import annotations

import html
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sae_lib.share.browser.directions import Ranked
from sae_lib.share.browser.examination import Examination
from sae_lib.share.browser.letters import Carrier, LetterReading
from sae_lib.util.files import atomic_write

LEVELS = 1000  # an activation is stored in thousandths of its latent's largest
_SCRIPTS = ("search.js", "latents.js", "absorption.js", "page.js")


def write_browser(examination: Examination, file: Path | str) -> Path:
    """Write the browser of an SAE, whole or not at all. The same examination gives the same bytes.

    Raises:
        ArtifactError: the disk is full.
    """
    assets = files("sae_lib.share.browser") / "assets"

    def asset(name: str) -> str:
        return (assets / name).read_text(encoding="utf-8")

    parts = {
        "title": html.escape(examination.title),
        "style": asset("page.css"),
        "script": "\n".join(asset(name) for name in _SCRIPTS),
        "data": as_script(page_data(examination)),
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], asset("page.html"))
    with atomic_write(file) as stream:
        stream.write(page)
    return Path(file)


def as_script(data: object) -> str:
    """JSON that may stand inside a script element: no character of it can end the element or open markup."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def page_data(examination: Examination) -> dict[str, Any]:
    """What the page shows, as compact JSON: columns over latents, tokens as numbers into one list of pieces.

    - `examples[latent]`: [context, start, stop, peak, strongest, [offset, level, ...]], levels in thousandths of the
      latent's maximum at the tokens where it fires.
    - `promoted`, `suppressed`, `neighbours`: [index, value, index, value, ...] for each latent.
    - `match.cosines`: one list over latents for each other seed; null where there is no counterpart.
    """
    table = _Table(examination)
    firing, match = examination.firing, examination.match
    examples = [table.examples(latent) for latent in range(examination.d_sae)]
    nearest = [examination.nearest_letter(latent) for latent in range(examination.d_sae)]
    data = {
        "title": examination.title,
        "facts": [*examination.facts.items()],
        "density": [float(f"{value:.4g}") for value in firing.density],
        "maximum": _rounded(firing.maximum),
        "examples": examples,
        "promoted": table.effects(examination.effects.promoted),
        "suppressed": table.effects(examination.effects.suppressed),
        "neighbours": _pairs(examination.neighbours.indices.tolist(), examination.neighbours.values),
        "match": {
            "kind": match.kind,
            "seeds": match.seeds,
            "cosines": [_rounded(row.numpy()) for row in match.cosines],
            "chance": _rounded(np.array([match.chance]))[0],
        },
        "nearest": [(letter[0], round(letter[1], 3)) if letter else None for letter in nearest],
        "roles": {str(latent): held for latent, held in sorted(examination.roles.items())},
        "letters": [_letter(reading) for reading in examination.letters],
        "start": examination.letter().letter if examination.letters else None,
    }
    return data | {"contexts": table.contexts, "pieces": table.pieces}


class _Table:
    """Gives every context and every token that is shown a number, in the order in which they come up."""

    def __init__(self, examination: Examination) -> None:
        self._examination = examination
        self._of_context: dict[int, int] = {}
        self._of_token: dict[int, int] = {}
        self.contexts: list[list[int]] = []
        self.pieces: list[str] = []

    def examples(self, latent: int) -> list[list[Any]]:
        firing = self._examination.firing
        return [
            [
                self._context(example.context),
                example.start,
                example.start + len(example.activations),
                example.peak,
                int(example.strongest),
                [
                    number
                    for offset, activation in enumerate(example.activations)
                    if activation
                    for number in (offset, round(LEVELS * activation / firing.maximum[latent]))
                ],
            ]
            for example in firing.examples(latent)
        ]

    def effects(self, ranked: Ranked) -> list[list[float]]:
        return _pairs([[self._token(token) for token in row] for row in ranked.indices.tolist()], ranked.values)

    def _context(self, context: int) -> int:
        if context not in self._of_context:
            self._of_context[context] = len(self.contexts)
            self.contexts.append([self._token(token) for token in self._examination.firing.tokens[context].tolist()])
        return self._of_context[context]

    def _token(self, token: int) -> int:
        if token not in self._of_token:
            self._of_token[token] = len(self.pieces)
            self.pieces.append(self._examination.pieces[token])
        return self._of_token[token]


def _letter(reading: LetterReading) -> dict[str, Any]:
    return {
        "letter": reading.letter,
        "main": reading.main,
        "fraction": round(reading.fraction, 4),
        "full": round(reading.full, 4),
        "contrast": [reading.words.index(word) for word in reading.contrast],
        "words": [
            {
                "word": word.word,
                "probe": round(word.on_probe, 4),
                "own_share": round(word.own_share, 4),
                "absorbed_share": round(word.absorbed_share, 4),
                "main": [_carrier(carrier) for carrier in word.main],
                "absorbers": [_carrier(carrier) for carrier in word.absorbers],
                "fraction": round(word.fraction, 4),
                "full": word.full,
                "verdict": word.verdict,
            }
            for word in reading.words
        ],
    }


def _carrier(carrier: Carrier) -> list[float]:
    return [carrier.latent, round(carrier.activation, 4), round(carrier.cosine, 4)]


def _pairs(indices: list[list[int]], values: Float[Tensor, "d_sae few"]) -> list[list[float]]:
    return [
        [number for index, value in zip(row, row_values, strict=True) for number in (index, round(value, 3))]
        for row, row_values in zip(indices, values.tolist(), strict=True)
    ]


def _rounded(values: Float[np.ndarray, " n"]) -> list[float | None]:
    """Four digits after the point; JSON has no NaN."""
    return [None if value != value else round(float(value), 4) for value in values]
