"""A latent, and the absorption of a letter, as the output of a notebook cell: HTML without script, or plain text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from sae_lib.report.figures.style import look
from sae_lib.share.browser.examination import Examination
from sae_lib.share.browser.firing import Example
from sae_lib.share.browser.letters import Carrier, LetterReading, Role, Verdict, WordReading
from sae_lib.util.errors import ArtifactError

OWN = look("standard").color  # the two colours of the page, from the figures' colour-blind palette
ABSORBING = look("topk").color
_OWN_RGB = ", ".join(str(int(OWN[i : i + 2], 16)) for i in (1, 3, 5))
_MONO = "font-family:monospace;white-space:pre-wrap;text-align:left"
_SOFT = "opacity:.7"
NEVER = "never fires in this text"
_BAR, _WIDTH = 1.5, 140  # a bar ends at this multiple of P, which is so many pixels wide
_VERDICTS: dict[Verdict, str] = {
    "absorbed": "absorbed, own silent",
    "shared": "shared",
    "fires": "fires",
    "missed": "missed",
}
_ROLES = {"main": "the main latent of", "split": "a split of", "absorber": "absorbs words of"}


@dataclass(frozen=True, repr=False)
class LatentView:
    """What is shown of one latent. Shows itself in a notebook; `print` gives plain text."""

    examination: Examination
    latent: int
    strongest: int
    spread: int

    @property
    def headline(self) -> str:
        """Density, strongest activation and stability in one line."""
        found, i = self.examination, self.latent
        parts = [f"fires on {100 * found.firing.density[i]:.2g} % of tokens"]
        parts.append(f"strongest activation {found.firing.maximum[i]:.2f}")
        if len(found.match.seeds) and found.firing.density[i] > 0:
            mean = float(found.match.cosines[:, i].nanmean())
            parts.append(
                f"other seeds: cosine {mean:.2f} ({found.match.kind}; random directions {found.match.chance:.2f})"
            )
        if nearest := found.nearest_letter(i):
            parts.append(f"nearest letter {nearest[0].upper()} (cosine {nearest[1]:.2f})")
        return " · ".join(parts)

    @property
    def roles(self) -> list[str]:
        """What the latent is to first letters, one line for each."""
        return [_role(role) for role in self.examination.roles.get(self.latent, [])]

    def __repr__(self) -> str:
        lines = [f"Latent {self.latent} · {self.examination.title}", self.headline, *self.roles]
        lines += [f"{max(e.activations):8.2f}  {self._plain(e)}" for e in self._examples()] or [NEVER]
        lines += [f"{name}: {'  '.join(_spaced(token) for token, _ in pairs)}" for name, pairs in self._effects()]
        near = "  ".join(f"{i} ({cosine:.2f})" for i, cosine in self._neighbours())
        return "\n".join([*lines, f"nearest latents (cosine): {near}"])

    def _repr_html_(self) -> str:
        parts = [f"<b>Latent {self.latent}</b> <span style='{_SOFT}'>· {escape(self.examination.title)}</span>"]
        parts += [f"<div>{escape(line)}</div>" for line in (self.headline, *self.roles)]
        contexts = [(max(example.activations), self._marked(example)) for example in self._examples()]
        rows = [[f"{value:.2f}", f"<span style='{_MONO}'>{marked}</span>"] for value, marked in contexts]
        parts.append(_table(["activation", "contexts, the strongest first"], rows) if rows else NEVER)
        effects = [
            [name, _listed((f"<code>{escape(_spaced(token))}</code>", f"{value:+.2f}") for token, value in pairs)]
            for name, pairs in self._effects()
        ]
        near = _listed((str(i), f"({cosine:.2f})") for i, cosine in self._neighbours())
        parts.append(_table(["", ""], [*effects, ["nearest latents (cosine)", near]]))
        return f"<div>{''.join(parts)}</div>"

    def _examples(self) -> list[Example]:
        return self.examination.firing.examples(self.latent, self.strongest, self.spread)

    def _effects(self) -> Iterable[tuple[str, list[tuple[str, float]]]]:
        pieces, effects = self.examination.pieces, self.examination.effects
        for name, ranked in (("promotes", effects.promoted), ("suppresses", effects.suppressed)):
            of_latent = (part[self.latent].tolist() for part in ranked)
            yield name, [(pieces[token], value) for token, value in zip(*of_latent, strict=True)]

    def _neighbours(self) -> Iterable[tuple[int, float]]:
        return zip(*(part[self.latent].tolist() for part in self.examination.neighbours), strict=True)

    def _tokens(self, example: Example) -> list[str]:
        stop = example.start + len(example.activations)
        shown = self.examination.firing.tokens[example.context, example.start : stop]
        return [self.examination.pieces[token] for token in shown.tolist()]

    def _plain(self, example: Example) -> str:
        """The context with the strongest token in brackets."""
        tokens = self._tokens(example)
        tokens[example.peak - example.start] = f"[{tokens[example.peak - example.start]}]"
        return "".join(tokens)

    def _marked(self, example: Example) -> str:
        largest = self.examination.firing.maximum[self.latent]
        marked = []
        for offset, (token, value) in enumerate(zip(self._tokens(example), example.activations, strict=True)):
            strong = ";font-weight:bold;text-decoration:underline" if example.start + offset == example.peak else ""
            shade = f"background-color:rgba({_OWN_RGB}, {0.08 + 0.57 * value / largest:.3f}){strong}" if value else ""
            text = escape(token)
            marked.append(f"<span style='{shade}' title='{value:.2f}'>{text}</span>" if value else text)
        return "".join(marked)


@dataclass(frozen=True, repr=False)
class AbsorptionView:
    """Absorption of one letter, word by word. Shows itself in a notebook; `print` gives plain text."""

    examination: Examination
    reading: LetterReading
    words: int

    @property
    def summary(self) -> str:
        """How many words go which way, and the two scores."""
        counts = ", ".join(f"{self.reading.count(verdict)} {name}" for verdict, name in _VERDICTS.items())
        own = ", ".join(map(str, self.reading.main))
        return (
            f"{self.reading.letter.upper()}, own latents {own}. {len(self.reading.words)} words: {counts}. "
            f"Absorption fraction {self.reading.fraction:.3f}, full {self.reading.full:.3f} (lower is better)."
        )

    def __repr__(self) -> str:
        lines = [f"Absorption · {self.examination.title}", self.summary]
        for word in self._shown():
            row = f"{_spaced(word.word):<16}{_VERDICTS[word.verdict]:<22}{word.fraction:5.2f}  {_carriers(word.main)}"
            lines.append(row + (f"  <- {_carriers(word.absorbers)}" if word.absorbers else ""))
        return "\n".join(lines)

    def _shown(self) -> list[WordReading]:
        """A few words for contrast, then those that are absorbed most."""
        contrast = self.reading.contrast
        return contrast + [word for word in self.reading.words[: self.words] if word not in contrast]

    def _repr_html_(self) -> str:
        legend = (
            f"<span style='color:{OWN}'>■</span> the letter's own latents &nbsp; "
            f"<span style='color:{ABSORBING}'>▨</span> absorbing latents &nbsp; ▏the whole letter, <i>P</i>"
        )
        rows = [
            [
                f"<code>{escape(_spaced(word.word))}</code>",
                _VERDICTS[word.verdict] + (" <b>(full)</b>" if word.full else ""),
                _bar(word),
                escape(_carriers(word.main)),
                escape(_carriers(word.absorbers)),
                f"{word.fraction:.2f}",
            ]
            for word in self._shown()
        ]
        columns = ["word", "what happens", "share of <i>P</i>", "own latents", "absorbed by", "fraction ↓"]
        title = f"<b>Absorption, word by word</b> <span style='{_SOFT}'>· {escape(self.examination.title)}</span>"
        more = len(self.reading.words) - len(rows)
        rest = f"<div style='{_SOFT}'>and {more} words that are absorbed less</div>" if more > 0 else ""
        return f"<div>{title}<div>{escape(self.summary)}</div><div>{legend}</div>{_table(columns, rows)}{rest}</div>"


def show_latent(examination: Examination, latent: int, *, strongest: int = 6, spread: int = 3) -> LatentView:
    """One latent: contexts with the tokens it fires on, effects on the logits, neighbours, first letters, stability.

    Args:
        strongest: of its strongest contexts, so many.
        spread: and so many from the rest of its range.

    Raises:
        ArtifactError: there is no such latent.
    """
    if not 0 <= latent < examination.d_sae:
        raise ArtifactError(f"latent: {latent} is not one of 0 to {examination.d_sae - 1}")
    return LatentView(examination, latent, strongest, spread)


def show_absorption(examination: Examination, letter: str | None = None, *, words: int = 15) -> AbsorptionView:
    """Absorption happening: which latents fire on a letter's words, and which carry the letter instead.

    Args:
        letter: by default the one where absorption is seen best.
        words: shown, the most absorbed first.

    Raises:
        ArtifactError: the letter does not count.
    """
    return AbsorptionView(examination, examination.letter(letter), words)


def _role(role: Role) -> str:
    words = "  ".join(_spaced(word) for word in role.words[:8])
    count = f" ({len(role.words)}): {words}{' …' if len(role.words) > 8 else ''}" if role.words else ""
    return f"{_ROLES[role.kind]} {role.letter.upper()}{count}"


def _carriers(carriers: Sequence[Carrier]) -> str:
    if len(carriers) > 1 and not any(carrier.activation > 0 for carrier in carriers):
        return f"all {len(carriers)} silent"
    return ", ".join(
        f"{c.latent}: {c.activation:.2f} × {c.cosine:.2f}" if c.activation > 0 else f"{c.latent}: silent"
        for c in carriers
        if c.activation > 0 or len(carriers) == 1
    )


def _bar(word: WordReading) -> str:
    """Own and absorbing latents, each as a share of P, one after the other."""

    own = min(max(word.own_share, 0.0), _BAR)
    theirs = min(word.absorbed_share, _BAR - own)
    stripes = f"repeating-linear-gradient(135deg, {ABSORBING} 0 4px, rgba(222, 143, 5, .5) 4px 7px)"
    part = "<span style='display:inline-block;height:12px;width:{:.0f}px;background:{}'></span>"
    bar = part.format(_WIDTH * own, OWN) + part.format(_WIDTH * theirs, stripes)
    whole = (
        f"<span style='position:absolute;left:{_WIDTH}px;top:0;height:12px;border-left:2px solid currentColor'></span>"
    )
    box = f"position:relative;width:{_WIDTH * _BAR:.0f}px;height:12px;line-height:0;font-size:0"
    return f"<div style='{box}'>{bar}{whole}</div>"


def _listed(pairs: Iterable[tuple[str, str]]) -> str:
    return " &nbsp; ".join(f"{name}&nbsp;{value}" for name, value in pairs)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cell = "text-align:left;vertical-align:top;padding:2px 12px 2px 0"
    head = "".join(f"<th style='{cell}'>{name}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td style='{cell}'>{value}</td>" for value in row) + "</tr>" for row in rows)
    return f"<table style='margin:6px 0'>{f'<tr>{head}</tr>' if any(columns) else ''}{body}</table>"


def _spaced(token: str) -> str:
    """A token in a list: its leading space as a sign."""
    return f"␣{token[1:]}" if token.startswith(" ") else token
