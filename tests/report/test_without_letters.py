"""Results of a language model that knows no letters: every table and figure is made, and says what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from sae_lib.metrics.registry import SCORES
from sae_lib.profiles.profile import load_profile
from sae_lib.report.claims.file import load_claims
from sae_lib.report.claims.ledger import evaluate_claims
from sae_lib.report.claims.verdicts import Verdict
from sae_lib.report.figures.write import write_figure
from sae_lib.report.names import NOT_MEASURABLE
from sae_lib.report.results import Results
from sae_lib.report.tables.write import TABLES
from tests.report import synthetic

OF_LETTERS = [column for name in ("absorption", "stability") for column in SCORES[name].columns]
OF_LETTERS = [
    column
    for column in OF_LETTERS
    if not column.startswith("token") and column not in ("letters", "words", "context_words")
]

# Tables in which nothing that letters decide is left out.
OF_OTHERS = (
    "table_probing",
    "table_ground_truth",
    "table_ideas",
    "table_carriers",
    "table_perturbation",
    "table_layer_groups",
    "table_endings",
    "table_interpretation",
)


@pytest.fixture(scope="module", params=["empty", "missing"])
def results(request: pytest.FixtureRequest) -> Results:
    """As scored on such a model; and with the columns gone altogether."""
    found = synthetic.results((42, 43, 44))
    there = [column for column in OF_LETTERS if column in found.evaluation]

    def without(rows: pd.DataFrame) -> pd.DataFrame:
        if request.param == "missing":
            return rows.drop(columns=[*there, "letters", "words"])
        return rows.assign(**dict.fromkeys(there, np.nan), letters=0, words=0, context_words=0)

    found.evaluation, found.masked = without(found.evaluation), without(found.masked)
    found.letters = found.letters.iloc[:0]
    return found


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_table_is_made(results: Results, name: str) -> None:
    table = results.into(TABLES[name], load_profile("pocket"))
    assert "absorption, fraction" not in " ".join(table.shown.columns) or "letters" not in results.evaluation
    told = NOT_MEASURABLE.capitalize() in table.caption
    assert told == ("letters" in results.evaluation and name not in OF_OTHERS)
    assert "nan" not in table.shown.to_string().lower()


@pytest.mark.parametrize("name", ["key_metrics", "absorption_by_letter", "pareto", "stability", "ablation_effects"])
def test_every_figure_is_drawn(results: Results, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[str] = []

    def keep(fig: Figure, *_: object) -> list[Path]:
        words.extend(texts(fig))
        return []

    monkeypatch.setattr("sae_lib.report.figures.write.save_figure", keep)
    write_figure(name, results, load_profile("pocket"), tmp_path)
    known = NOT_MEASURABLE if "letters" in results.evaluation or name == "absorption_by_letter" else "not run"
    assert known in " ".join(words)


def texts(fig: Figure) -> list[str]:
    return [found.get_text().replace("\n", " ") for found in fig.findobj(Text)]


def assert_claims_say_so(evaluated: pd.DataFrame, results: Results) -> None:
    """A claim that a measure of letters decides is untestable here, not "not run"; no other is."""
    complete = evaluate_claims(load_profile("pocket"), synthetic.results((42, 43, 44))).set_index("id")
    told = 0
    for claim in load_claims():
        if not claim.data_check:
            continue
        wanted = {want["metric"] for want in claim.data_check.get("wants", ())}
        row, before = evaluated.set_index("id").loc[claim.id], complete.loc[claim.id]
        if claim.data_check["kind"] == "rare_letters" or (wanted and wanted <= {*OF_LETTERS}):
            assert row["at_this_scale"] == Verdict.UNTESTABLE and before["at_this_scale"] != row["at_this_scale"], (
                claim.id
            )
            assert NOT_MEASURABLE in row["number"] + row["reason"] and "nan" not in row["number"], row["number"]
            told += 1
        elif not wanted & {*OF_LETTERS} and claim.data_check["kind"] != "sensitivity":
            assert row["at_this_scale"] == before["at_this_scale"], claim.id
    assert told >= 3


def test_every_claim_has_a_verdict(results: Results) -> None:
    evaluated = evaluate_claims(load_profile("pocket"), results)
    if "letters" in results.evaluation:  # else the results are of nothing that could be asked
        assert_claims_say_so(evaluated, results)
    assert evaluated["verdict"].isin([*Verdict]).all() and evaluated["at_this_scale"].isin([*Verdict, ""]).all()
