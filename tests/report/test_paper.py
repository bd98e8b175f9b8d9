"""The paper: no number is typed, sentences follow the results, and the same results give the same bytes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from sae_lib.autoencoders.config import CONFIGS, config_class
from sae_lib.profiles.profile import load_profile
from sae_lib.report.claims.file import load_claims
from sae_lib.report.claims.ledger import evaluate_claims
from sae_lib.report.claims.links import CALLS, NOTEBOOKS_FROM_FIGURES, notebook_cells
from sae_lib.report.figures.style import save_figure
from sae_lib.report.paper.build import FIGURES, as_shown, build_paper
from sae_lib.report.paper.facts import PROVENANCE_FILE, made_from, sentences
from sae_lib.report.paper.template import PROSE, escaped, rendered, typed_numbers
from sae_lib.report.paper.values import Change, quantities
from sae_lib.report.results import KEYS, Results
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import file_sha256, write_json
from sae_lib.util.paths import ROOT
from tests.report import synthetic

POCKET = load_profile("pocket")
ENTRIES = load_claims()
SOURCE = PROSE.read_text(encoding="utf8")


@pytest.fixture(scope="module")
def results() -> Results:
    return synthetic.results()


@pytest.fixture(scope="module")
def claims(results: Results) -> list[dict[str, Any]]:
    return evaluate_claims(POCKET, results).to_dict("records")


@pytest.fixture(scope="module")
def folder(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A figures folder with the results and one figure of those that the paper shows."""
    folder = tmp_path_factory.mktemp("figures")
    (folder / "results").mkdir()
    for name in KEYS:
        getattr(results, name).to_parquet(folder / "results" / f"{name}.parquet")
    fig, ax = plt.subplots(figsize=(2, 1))
    ax.plot([0, 1])
    save_figure(fig, "pareto", pd.DataFrame({"x": [0]}), folder)
    return folder


@pytest.fixture(scope="module")
def made(folder: Path) -> tuple[bytes, str]:
    pdf, html = build_paper(POCKET, folder)
    return pdf.read_bytes(), html.read_text(encoding="utf8")


def prose(results: Results, claims: list[dict[str, Any]]) -> str:
    names = quantities(results) | sentences(POCKET, results, claims, ENTRIES) | {"references": [], "title": "Title"}
    return re.sub(r"\s+", " ", rendered(SOURCE, names).replace("\\", ""))


def shifted(results: Results, group: str, method: str, column: str, by: float) -> Results:
    rows = results.evaluation.copy()
    rows.loc[(rows["group"] == group) & (rows["method"] == method), column] += by
    return replace(results, evaluation=rows)


def test_no_number_of_the_prose_is_typed() -> None:
    assert typed_numbers(SOURCE) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ATM absorbs 0.145.", ["1: 0.145"]),
        ("one\ntwo 31 % more", ["2: 31"]),
        ("$alpha = 0.031$", ["1: 0.031"]),
        ("of 5 seeds", ["1: 5"]),
        ("{{ 0.148 }}", ["1: 0.148"]),
        ("{{ 'about 35 times' }}", ["1: 'about 35 times'"]),
        ("{% if a > 3 %}x{% endif %}", ["1: 3"]),
        ("Table 4 says 17", ["1: 17"]),
        ("in section 6.2, Eq. 3 and Table 1 of Chanin et al. (2024)", []),
        ("$L_0$, $gamma = 0.99$ and Gemma-2-2b", []),
        ("{{ main.atm.probing_k1 }} and {{ published('T-05', 'headline') }} (T-05)", []),
    ],
)
def test_a_typed_number_is_found_wherever_it_hides(text: str, found: list[str]) -> None:
    assert typed_numbers(text) == found
    if found:
        with pytest.raises(ArtifactError, match=re.escape(found[0])):
            rendered(text, {})


def test_a_number_typed_into_the_prose_stops_the_paper() -> None:
    spoilt = SOURCE.replace("{{ atm.absorption_fraction }}", "0.145", 1)
    assert len(typed_numbers(spoilt)) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x\n{{ nothing }}", "'nothing' is undefined"),
        ("{{ main.atm.absorbtion }}", "main.atm has no 'absorbtion'"),
        ("{{ main.magic.l0 }}", "main has no 'magic'"),
        ("{{ main.atm }}", "no text and no number"),
        ("{% if x %}", "end of template"),
    ],
)
def test_an_unknown_name_is_refused(results: Results, text: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        rendered(text, quantities(results))


def test_what_is_printed_cannot_become_markup() -> None:
    assert escaped("a_b *c* #d $e$ <f>") == r"a\_b \*c\* \#d \$e\$ \<f\>"
    assert rendered("{{ name }}", {"name": "#panic()"}) == r"\#panic()"


def test_a_quantity_is_the_mean_over_seeds_and_a_difference_is_paired(results: Results) -> None:
    names = quantities(results)
    atm, dropout = (names["main"][method]["absorption_fraction"] for method in ("atm", "dropout"))
    rows = results.evaluation.query("group == 'main'").set_index("seed")
    values = rows.loc[rows["method"] == "atm", "absorption_fraction"]
    assert str(atm) == f"{values.mean():.3f} ± {values.std():.3f}" and atm.mean == f"{values.mean():.3f}"
    gap = values - rows.loc[rows["method"] == "dropout", "absorption_fraction"]
    assert (atm - dropout).interval.mean == pytest.approx(gap.mean())
    assert (atm - dropout).falls and (dropout - atm).rises and not (atm - dropout).flat
    assert str(atm - dropout).startswith("−")
    assert names["best"]("absorption_fraction") == "Matryoshka (4 levels)"
    assert "ATM" in names["below"]("absorption_fraction", "topk")


def test_sentences_follow_the_results(results: Results, claims: list[dict[str, Any]]) -> None:
    """ATM is made to absorb more than dropout, TemporalSAE to explain more than Standard: the text says so."""
    before = prose(results, claims)
    assert "*ATM* absorbs less than masking that is as strong and blind" in before
    assert "explains less variance" in before and "The importance score matters." in before
    after = prose(shifted(results, "main", "atm", "absorption_fraction", 0.5), claims)
    assert "*ATM* absorbs more than masking that is as strong and blind" in after
    assert "The importance score matters." not in after and "is not shown to absorb more" in after
    better = prose(shifted(results, "main", "temporal_sae", "explained_variance", 0.2), claims)
    assert "and explains more variance" in better
    changed = [{**claim, "at_this_scale": "contradicted"} for claim in claims]
    assert "(T-14) is contradicted here" in prose(results, changed)


def test_numbers_of_the_text_are_those_of_the_results(results: Results, claims: list[dict[str, Any]]) -> None:
    moved = shifted(results, "main", "dropout", "absorption_fraction", 0.123)
    for state in (results, moved):
        values = state.seeds("main", "dropout", "absorption_fraction")
        assert f"{values.mean():.3f} ± {values.std():.3f}" in prose(state, claims)


def test_published_numbers_are_those_of_the_claims(results: Results, claims: list[dict[str, Any]]) -> None:
    text = prose(results, claims)
    assert "score of 0.313 against 0.009" in text and "36.5-fold" in text and "35 times as much" in text
    assert "5 contradict the numbers printed in the same paper" in text


def test_poor_results_are_said_to_be_missing(claims: list[dict[str, Any]]) -> None:
    """One seed, and none of the ablations, toys and letters: no comparison is told, nothing fails."""
    few = synthetic.results(seeds=(42,))
    rows = few.evaluation[few.evaluation["group"] == "main"]
    text = prose(Results(evaluation=rows), claims)
    assert "absorbs not comparably (too few seeds) to" in text and "(not run)" in text
    assert not re.search(r"\bnan\b", text) and "score matters." not in text
    assert not Change(quantities(few)["effect"]["temporal"]["l0"].interval, "l0").known


def test_switches_named_in_the_text_exist() -> None:
    schema = json.dumps([config_class(name).model_json_schema() for name in CONFIGS])
    named = {name for name in re.findall(r"`(\w+)`", SOURCE)}
    assert len(named) > 20
    assert [name for name in sorted(named) if f'"{name}"' not in schema] == []


def test_provenance_has_the_hash_of_each_result(folder: Path) -> None:
    facts = {name: value for name, value in made_from(POCKET, folder / "results")}
    assert facts["command"] == "make paper PROFILE=pocket" and "torch" in facts["versions"]
    assert facts["results/toy.parquet"] == file_sha256(folder / "results" / "toy.parquet")[:16]
    assert "device" not in facts
    write_json(folder / "results" / PROVENANCE_FILE, {"device": "CPU, 2 threads"})
    assert {name: value for name, value in made_from(POCKET, folder / "results")}["device"] == "CPU, 2 threads"
    (folder / "results" / PROVENANCE_FILE).unlink()


def test_tables_say_once_what_is_the_same_in_every_row() -> None:
    frame = pd.DataFrame(
        {"method": ["A (one)", "B"], "seeds": ["5", "5"], "L0 –": ["1.0 ± 0.1", "-2.0 ± 0.1"], "n ↑": ["3", "–"]}
    )
    shown = as_shown(frame)
    assert shown["columns"] == ["method", "L0 –"] and shown["same"] == "seeds 5, n 3"
    assert shown["rows"] == [["A\u00a0(one)", "1.0\u00a0±\u00a00.1"], ["B", "−2.0\u00a0±\u00a00.1"]]
    assert as_shown(pd.DataFrame({"L0": ["20", "20", "40"], "a": list("xyz")}))["rows"][1][0] == ""


def test_pdf_and_page(made: tuple[bytes, str], claims: list[dict[str, Any]]) -> None:
    pdf, html = made
    assert pdf.startswith(b"%PDF-") and b"/CreationDate" not in pdf
    for claim in claims:
        assert f">{claim['id']} · {claim['paper']}" in html
    assert "<title>Does time reduce feature absorption?" in html and "<style>:root" in html
    assert html.count("data:image/png;base64,") == 1
    assert html.count("Not made at this profile.") == len(FIGURES) - 1
    assert len(re.findall(r'class="equation"', html)) == html.count("<svg")


def test_the_page_needs_nothing_but_itself(made: tuple[bytes, str]) -> None:
    """Offline: no script, no style sheet, image or font from elsewhere; links go to notebooks and files beside it."""
    _, html = made
    assert "<script" not in html and "<link" not in html and "@import" not in html and "url(http" not in html
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]{0,20})', html))
    targets = {target for target in re.findall(r'href="([^"]+)"', html) if not target.startswith("#")}
    assert targets
    for target in targets:
        path = target.partition("#")[0]
        assert path.startswith(f"{NOTEBOOKS_FROM_FIGURES}/") or path.partition(".")[0] in CALLS, target


def test_the_same_results_give_the_same_bytes(made: tuple[bytes, str], folder: Path, tmp_path: Path) -> None:
    """In another process, whose sets have another order, and into another folder."""
    code = (
        "import sys; from sae_lib.profiles.profile import load_profile; "
        "from sae_lib.report.paper.build import build_paper; "
        "build_paper(load_profile('pocket'), sys.argv[1], sys.argv[2])"
    )
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code, str(folder), str(tmp_path)], check=True, env=environment, cwd=tmp_path)
    assert (tmp_path / "paper.pdf").read_bytes() == made[0]
    assert (tmp_path / "paper.html").read_text(encoding="utf8") == made[1]


def test_without_results_there_is_no_paper(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no folder"):
        build_paper(POCKET, tmp_path)
    (tmp_path / "results").mkdir()
    with pytest.raises(ArtifactError, match="no evaluated SAEs"):
        build_paper(POCKET, tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "results"]


def test_a_notebook_cell_shows_each_file_of_the_claims() -> None:
    cells = notebook_cells()
    assert set(cells) >= {"table_main", "pareto", "toy_matched", "absorption_picture", "table_sequence", "claims"}
    assert cells["table_main"].target.startswith("../notebooks/04_evaluation.ipynb#cell-id=")
