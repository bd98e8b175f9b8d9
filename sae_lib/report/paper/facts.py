"""What the paper's prose can name, and how the prose is filled in.

`{{ atm.absorption_fraction }}` is a mean over seeds with its standard deviation, `{{ atm.l0 - topk.l0 }}` a difference
paired by seed with its interval, and the `word` of a difference says on which side of zero that lies. A sentence is
written to stay true whatever the number or the word is. An unknown name is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined, TemplateError

from sae_lib.autoencoders.standard import PAPER
from sae_lib.mechanisms.adaptive_temporal_masking import COMPONENTS, MaskingConfig
from sae_lib.mechanisms.resampling import ResamplingConfig
from sae_lib.mechanisms.temporal_penalty import TemporalConfig
from sae_lib.profiles.profile import Profile
from sae_lib.profiles.runs import ALONE, FAIR, PLANTED
from sae_lib.report.claims.file import Claim
from sae_lib.report.claims.ledger import PAPERS_MODEL, findings
from sae_lib.report.names import MAIN_METHODS, MECHANISMS, METHODS, METRICS, TOY_METHODS
from sae_lib.report.results import Results, bare, drop_effect, main_effect, select, toy_rows
from sae_lib.report.statistics import Interval, difference, seeds_of, t_interval
from sae_lib.report.tables.ablations import PAPER_RUNS
from sae_lib.report.tables.controls import MEASURES, UNTRAINED, above, group_of, no_better
from sae_lib.report.tables.leaderboard import bar_table
from sae_lib.report.tables.main import profile_note
from sae_lib.report.tables.rows import cell, gap_cell
from sae_lib.util.environment import locked_pins
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import file_sha256, read_json
from sae_lib.util.paths import LOCK_FILE

NOTHING = "not computed"
# Beside the results: what notebook 05 knows of the run (`provenance`).
PROVENANCE_FILE = "provenance.json"
VERSIONS = ("torch", "transformers", "numpy", "scikit-learn", "pandas", "matplotlib", "typst")
ALONG = ("topk", "matryoshka_4", "jumprelu")  # absorption along whose runs the prose tells
SHARES = ("none", "most", "all", "known")  # full absorption where so much is planted; with silenced latents named
TEN = 10  # latents that are ablated where the prose gives TPP and SCR, or make a circuit
# Metric -> decimals; the last ones are of single tables on the real model.
_DECIMALS = {name: column.decimals for name, column in METRICS.items()}
_DECIMALS |= dict.fromkeys(("named", "carried", "tpp", "scr", "faithful"), 2)
_SPECIAL = re.compile(r"([\\#$*_`<>@\[\]~=/\"'+-])")


@dataclass(frozen=True)
class Number:
    """A metric over seeds, with its interval. Of one set of SAEs, by seed (`values`): '0.123 ± 0.004'; of a difference
    or an effect: '−0.158 [−0.210, −0.107]'."""

    interval: Interval
    metric: str
    values: pd.Series = field(default_factory=lambda: pd.Series(dtype=float))

    def __str__(self) -> str:
        text = (gap_cell if self.values.empty else cell)(self.interval, _DECIMALS[self.metric])
        return text.replace("-", "−") if self.known else NOTHING

    def __sub__(self, other: Number) -> Number:
        return Number(difference(self.values, other.values), self.metric)

    @property
    def known(self) -> bool:
        return self.interval.n > 0

    @property
    def mean(self) -> str:
        return str(self).split(" ± ")[0]

    @property
    def percent(self) -> str:
        return f"{100 * self.interval.mean:.0f} %" if self.known else NOTHING

    @property
    def word(self) -> str:
        """To stand before 'that of ...', of a difference."""
        if self.interval.n < 2:
            return "not compared with"
        return "below" if self.interval.high < 0 else "above" if self.interval.low > 0 else "not told apart from"


@dataclass(frozen=True)
class Rows:
    """A set of SAEs: `rows.l0` is what `find` gives for that metric."""

    find: Callable[[str], pd.Series | Interval]

    def __getitem__(self, metric: str) -> Number:
        if metric not in _DECIMALS:
            raise KeyError(metric)
        found = self.find(metric)
        return Number(found, metric) if isinstance(found, Interval) else Number(t_interval(found), metric, found)


def _by(names: Iterable[str], find: Callable[[str, str], pd.Series | Interval]) -> dict[str, Rows]:
    return {name: Rows(partial(find, name)) for name in names}


def _by_method(rows: pd.DataFrame) -> dict[str, Rows]:
    return _by((*METHODS, *TOY_METHODS), lambda method, metric: seeds_of(rows[rows["method"] == method], metric))


def _group(results: Results, name: str, methods: Iterable[str] = METHODS) -> dict[str, Rows]:
    """The rows of each of `methods` in a group; without `name`, those that the main table shows."""
    return _by(methods, lambda method, metric: results.seeds(name or group_of(method), method, metric))


def _texts(rows: pd.DataFrame, of: Callable[[pd.DataFrame], Mapping[Any, float]], form: str, *names: str) -> Any:
    """The numbers that `of` reads off `rows`, by name; that they were not computed where there are no rows."""
    found = {name: f"{value:{form}}" for name, value in of(rows).items()} if len(rows) else {}
    return found or dict.fromkeys(names, NOTHING)


def real_facts(profile: Profile, results: Results) -> dict[str, Any]:
    """What the prose can name of the SAEs on one language model: on the profile's, and, as `real`, on the real one."""
    evaluation, planted, carriers, ablated = results.evaluation, results.planted, results.carriers, results.perturbation
    collapse = evaluation[evaluation["group"] == "collapse"]
    seeds = sorted({*evaluation.loc[evaluation["group"] == "main", "seed"]})
    return {
        **_group(results, ""),
        "profile": profile,
        "seeds": ", ".join(map(str, seeds)) or NOTHING,
        "as_written": _group(results, "as_written"),
        "fair": _group(results, "atm_fair", FAIR),
        "chosen": _texts(select(evaluation, "atm_fair", "atm"), lambda rows: rows[["c", "r"]].iloc[0], "g", "c", "r"),
        "collapse": _by(ALONE, lambda name, metric: seeds_of(collapse[collapse["label"] == ALONE[name]], metric)),
        "planted": {m: _texts(planted[planted["method"] == m], _planted, ".2f", *SHARES) for m in PLANTED},
        "along": {m: _texts(select(results.trajectory, "main", m), _along, ".2f", "half", "end") for m in ALONG},
        "perturbation": {
            "ten": _by_method(ablated[ablated["n"] == TEN]),
            "most": _by_method(ablated[ablated["n"] == ablated["n"].max()]),
        },
        "circuits": _by_method(results.circuits[results.circuits["n"] == TEN]),
        "endings": _by_method(results.endings[results.endings["ending"] == "all"]),
        # Of absorbed words and of found ones: the logit that is lost, and in which share of words it is carried.
        "carriers": {kind: _by_method(carriers[carriers["kind"] == kind]) for kind in ("absorbed", "found")},
    }


def _along(rows: pd.DataFrame) -> dict[str, float]:
    """Full absorption halfway along the run of an SAE of the main table, and at its end."""
    full = rows.set_index("step")["absorption_full"].sort_index()
    return {"half": full.loc[: full.index[-1] // 2].iloc[-1], "end": full.iloc[-1]}


def _planted(rows: pd.DataFrame) -> dict[str, float]:
    full = rows.groupby("planted")[["absorption_full", "absorption_full_known"]].mean()
    found, known = full["absorption_full"], full["absorption_full_known"].iloc[-1]
    return dict(zip(SHARES, (found.iloc[0], found.max(), found.iloc[-1], known), strict=True))


def facts(
    profile: Profile,
    results: Results,
    evaluated: pd.DataFrame,
    entries: list[Claim],
    real: tuple[Profile, Results] | None = None,
    of_field: Results | None = None,
) -> dict[str, Any]:
    """The names of the template. `evaluated` are the evaluated `entries` of claims.yaml; `real` is the real language
    model's profile with its results, this one's if not given; `of_field` the results of `make field`."""
    evaluation = results.evaluation
    factorial, parts = (evaluation[evaluation["group"] == name] for name in ("factorial", "atm_importance"))
    published = {claim.id: {number.name: number.value for number in claim.published} for claim in entries}
    answered, counted = evaluated.set_index("id"), findings(evaluated)
    known = [m for m in MEASURES if any(above(results, m, method, UNTRAINED).n > 1 for method in MAIN_METHODS)]
    temporal, the_field = TemporalConfig(), of_field or Results()
    toys = the_field.toy_summary
    return {
        **real_facts(profile, results),
        "real": real_facts(*(real or (profile, results))),
        "field": _group(the_field, ""),
        "bar": _bar(the_field),
        "hidden": _hidden(the_field),
        "known_features": {toy: _by_method(toy_rows(toys, "field", toy)) for toy in ("synthetic", "loud")},
        "gemma": profile.model.name == PAPERS_MODEL,
        "sae_count": evaluation["run"].nunique(),
        "toy_count": len(results.toy_summary),
        "sequence": _group(results, "sequence", PAPER_RUNS),
        "bare": Rows(lambda metric: seeds_of(bare(factorial), metric)),
        "effect": _by(MECHANISMS, lambda name, metric: main_effect(factorial, metric, name)),
        "without": _by(COMPONENTS, lambda part, metric: drop_effect(parts, metric, part)),
        "truth": _by_method(toy_rows(results.toy_summary, "matched", "tree")),
        "order": _order(results.toy_summary),
        "recipe": PAPER,
        "temporal": temporal,
        "resampling": ResamplingConfig(),
        "masking": MaskingConfig(),
        # The activation from which a lasting parent is dearer absorbed than not, Eq. 8, at alpha = 1.
        "breakeven": f"{(2 - 2**0.5) * PAPER['l1_coefficient'] / (4 * temporal.coefficient):.0f}",
        "published": lambda claim, name: str(published[claim][name]),
        "ratio": lambda claim, first, second: f"{published[claim][first] / published[claim][second]:.0f}",
        "decided": lambda claim: answered.loc[claim, "number"],
        "here": lambda claim: answered.loc[claim, "at_this_scale"] or "not checked",
        "on_truth": lambda claim: answered.loc[claim, "ground_truth"] or "not checked",
        "claim_count": len(evaluated),
        "finding_count": len(counted),
        "verdict_count": lambda verdict, column="verdict": int((counted[column] == verdict).sum()),
        "measure_count": len(known),
        "mute_count": sum(bool(no_better(results, metric)) for metric in known),
    }


def _bar(results: Results) -> dict[str, str]:
    """How many ideas there are, how many meet every measure, the most that one meets, and of how many."""
    try:
        found = bar_table(results.evaluation, results.toy_summary).data.groupby("row")["met"].agg(["sum", "size"])
    except ArtifactError:
        return dict.fromkeys(("ideas", "better", "most", "measures"), NOTHING)
    better, most, size = (found["sum"] == found["size"]).sum(), found["sum"].max(), found["size"].max()
    return {"ideas": str(len(found)), "better": str(better or "none"), "most": str(most), "measures": str(size)}


def _hidden(results: Results) -> dict[str, Any]:
    """The SAEs of masked regularisation: with nothing hidden (`none`), and with the largest `share`."""
    rows = results.masked
    shares = {"none": 0.0, "most": rows["masked"].max()}
    of = _by(shares, lambda name, metric: seeds_of(rows[rows["masked"] == shares[name]], metric))
    return {**of, "share": f"{100 * shares['most']:.0f} %" if len(rows) else NOTHING}


def _order(toys: pd.DataFrame) -> dict[str, Any]:
    """The temporal penalty minus the penalty on variance, in absorption, at each persistence of the chains."""
    rows, metric = toy_rows(toys, "rho"), "parent_silent_rate"
    rows = rows[rows["label"] == "strong"]
    tried = [_by_method(part) for _, part in rows.groupby("rho")] if len(rows) else []
    gaps = [of["temporal_strong"][metric] - of["variance"][metric] for of in tried]
    largest = max(gaps, key=lambda gap: abs(gap.interval.mean), default=NOTHING)
    return {"tried": len(gaps), "apart": sum(gap.word in ("below", "above") for gap in gaps), "largest": largest}


def filled(prose: str, names: dict[str, Any]) -> str:
    """The template with its names filled in. Raises ArtifactError: a name is unknown, or gives no text."""
    options: dict[str, Any] = {"trim_blocks": True, "keep_trailing_newline": True}
    environment = Environment(undefined=StrictUndefined, finalize=_printed, **options)
    try:
        return environment.from_string(prose).render(names)
    except (TemplateError, KeyError) as error:
        raise ArtifactError(f"paper: {error}") from None


def _printed(value: Any) -> str:
    """What an expression puts into the text: markup that shows it unchanged."""
    if not isinstance(value, (str, int, float, Number, StrictUndefined)):
        raise ArtifactError(f"paper: an expression gives {type(value).__name__}, which is no text and no number")
    text = f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
    return _SPECIAL.sub(r"\\\1", text)


def made_from(profile: Profile, results_folder: Path) -> list[list[str]]:
    """Name and value of what the paper was made from: settings, versions, what `PROVENANCE_FILE` says of the run (such
    as the device and the hash of the corpus), and one hash of all results."""
    path, pins = results_folder / PROVENANCE_FILE, locked_pins()
    hashes = "".join(f"{p.name} {file_sha256(p)}\n" for p in sorted(results_folder.glob("*.parquet")))
    made = {
        "command": f"make paper PROFILE={profile.name}",
        "setting": profile_note(profile),
        "lock": f"requirements.lock, {file_sha256(LOCK_FILE)[:12]}",
        "versions": ", ".join(f"{name} {pins[name]}" for name in VERSIONS if name in pins),
        **(read_json(path) if path.is_file() else {}),
        "results": hashlib.sha256(hashes.encode()).hexdigest()[:16],
    }
    return [[name, value] for name, value in made.items()]
