"""The paper: no number is typed, sentences follow the results, and the same results give the same bytes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from jinja2 import Environment

from sae_lib.profiles.profile import load_profile
from sae_lib.report.claims.file import load_claims
from sae_lib.report.claims.ledger import evaluate_claims
from sae_lib.report.figures.style import save_figure
from sae_lib.report.figures.write import FIGURES
from sae_lib.report.paper.build import OTHERS, PROSE, as_shown, build_paper, named
from sae_lib.report.paper.facts import PROVENANCE_FILE, facts, filled, made_from, real_facts
from sae_lib.report.results import Results
from sae_lib.report.tables.write import TABLES
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import write_json
from sae_lib.util.paths import COMMITTED, ROOT
from tests.report import synthetic
from tests.report.synthetic import POCKET, save, shifted

ENTRIES = load_claims()
SOURCE = PROSE.read_text(encoding="utf8")
BEGIN = f"({'|'.join(OTHERS)})_"  # of a figure or table from another profile's committed results
# Digits that are no results: names, places in the papers, sizes of type, constants of the definitions.
ALLOWED = (
    r"#(?:tab|fig)\(.*?\[", r"\$[^$]*\$", r"#eq\[.*", r"Gemma-2(?:-2b)?|GPT-2 small", r"\bL1\b", r"@\w+",
    r"\b[TM]-\d\d\b", r"SAEBench 0\.6\.0", r"\b95 per cent\b", r"(?:Eq\.|[Ss]ection|Table|[Rr]un) [\d.]+(?: and \d)?",
)  # fmt: skip


def typed_numbers(source: str) -> list[str]:
    """The numbers that somebody typed into the prose, outside its expressions and formulas and inside of them."""
    parts = [(kind, value) for _, kind, value in Environment().lex(source)]
    text = re.sub("|".join(ALLOWED), " ", "".join(value for kind, value in parts if kind == "data"))
    return re.findall(r"\d+(?:\.\d+)?", text) + [value for kind, value in parts if kind in ("integer", "float")]


@pytest.fixture(scope="module")
def results() -> Results:
    return synthetic.results()


@pytest.fixture(scope="module")
def evaluated(results: Results) -> pd.DataFrame:
    return evaluate_claims(POCKET, results)


@pytest.fixture(scope="module")
def folder(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A figures folder with the results and one figure of those that the paper shows."""
    folder = save(results, tmp_path_factory.mktemp("figures") / "results").parent
    fig, ax = plt.subplots(figsize=(2, 1))
    ax.plot([0, 1])
    save_figure(fig, "pareto", pd.DataFrame({"x": [0]}), folder)
    return folder


@pytest.fixture(scope="module")
def made(folder: Path) -> tuple[bytes, str]:
    pdf, html = build_paper(POCKET, folder)
    return pdf.read_bytes(), html.read_text(encoding="utf8")


def prose(results: Results, evaluated: pd.DataFrame) -> str:
    real = (load_profile("smollm2"), results)  # the same results, said of either model
    text = filled(SOURCE, facts(POCKET, results, evaluated, ENTRIES, real))
    return re.sub(r"\s+", " ", text.replace("\\", ""))


def test_no_number_of_the_prose_is_typed() -> None:
    assert typed_numbers(SOURCE) == []
    spoilt = SOURCE.replace("{{ fair.atm.absorption_fraction }}", "0.145", 1)
    assert typed_numbers(spoilt) == ["0.145"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ATM absorbs 0.145.", ["0.145"]),
        ("of 5 seeds, {{ 0.148 }}", ["5", "0.148"]),
        ("{% if a > 3 %}x{% endif %}", ["3"]),
        ("in section 6.2, Eq. 3 and Table 1 of TemporalSAE @chanin2024", []),
        ("$gamma = 0.99$ and Gemma-2-2b, {{ published('T-05', 'headline') }} (T-05)", []),
    ],
)
def test_a_typed_number_is_found_wherever_it_hides(text: str, found: list[str]) -> None:
    assert typed_numbers(text) == found


@pytest.mark.parametrize(
    "text", ["{{ nothing }}", "{{ atm.absorbtion }}", "{{ atm }}", "{{ here('T-99') }}", "{% if x %}"]
)
def test_an_unknown_name_is_refused(results: Results, evaluated: pd.DataFrame, text: str) -> None:
    with pytest.raises(ArtifactError, match="paper: "):
        filled(text, facts(POCKET, results, evaluated, ENTRIES))


def test_what_is_printed_cannot_become_markup() -> None:
    assert filled("{{ name }}", {"name": "a_b *c* #d() $e$ <f>"}) == r"a\_b \*c\* \#d() \$e\$ \<f\>"


def test_a_quantity_is_the_mean_over_seeds_and_a_difference_is_paired(
    results: Results, evaluated: pd.DataFrame
) -> None:
    names = facts(POCKET, results, evaluated, ENTRIES)
    atm, dropout = (names[method]["absorption_fraction"] for method in ("atm", "dropout"))
    rows = results.evaluation.query("group == 'main'").set_index("seed")
    values = rows.loc[rows["method"] == "atm", "absorption_fraction"]
    assert str(atm) == f"{values.mean():.3f} ± {values.std():.3f}" and atm.mean == f"{values.mean():.3f}"
    gap = values - rows.loc[rows["method"] == "dropout", "absorption_fraction"]
    assert (atm - dropout).interval.mean == pytest.approx(gap.mean())
    assert (atm - dropout).word == "below" and (dropout - atm).word == "above" and str(atm - dropout).startswith("−")
    assert (atm - atm).word == "not told apart from"


def test_words_and_numbers_follow_the_results(results: Results, evaluated: pd.DataFrame) -> None:
    """ATM is made to absorb more than dropout, TemporalSAE to explain more than Standard: the text says so."""
    before = prose(results, evaluated)
    assert "below that of blind dropout that" in before and "its explained variance is below that of plain L1" in before
    moved = shifted(results, "atm_fair", "atm", "absorption_fraction", 0.5)
    assert "above that of blind dropout that" in prose(moved, evaluated)
    values = moved.seeds("atm_fair", "atm", "absorption_fraction")
    assert f"{values.mean():.3f} ± {values.std():.3f}" in prose(moved, evaluated)
    better = shifted(results, "main", "temporal_sae", "explained_variance", 0.2)
    assert "its explained variance is above that of plain L1" in prose(better, evaluated)
    changed = evaluated.assign(at_this_scale="contradicted")
    assert "(T-14) is contradicted at this scale" in prose(results, changed)


def test_published_numbers_are_those_of_the_claims(results: Results, evaluated: pd.DataFrame) -> None:
    text = prose(results, evaluated)
    assert "TemporalSAE's 0.313 against 0.009" in text and "36.5-fold" in text and "about 35 times as much" in text
    assert "5 contradict other numbers of the same paper" in text


@pytest.mark.parametrize("profile", ["pocket", "smollm2"])
def test_poor_results_are_said_to_be_missing(profile: str, tmp_path: Path) -> None:
    """One seed, and none of the ablations, toys, letters and figures: the paper is made, and says what it lacks."""
    few = synthetic.results(seeds=(42,)).evaluation
    (tmp_path / "results").mkdir()
    few[few["group"] == "main"].to_parquet(tmp_path / "results" / "evaluation.parquet")
    _, page = build_paper(load_profile(profile), tmp_path)
    text = page.read_text(encoding="utf8")
    assert "is not compared with that of" in text and "not computed" in text
    assert not re.search(r"\bnan\b", text)
    assert text.count("Not computed at this profile.") >= len(named(SOURCE, "fig"))


def test_provenance_has_a_hash_of_the_results(folder: Path, tmp_path: Path) -> None:
    made = dict(made_from(POCKET, folder / "results"))
    assert made["command"] == "make paper PROFILE=pocket" and "torch" in made["versions"] and "device" not in made
    assert made["results"] != dict(made_from(POCKET, tmp_path))["results"]
    write_json(folder / "results" / PROVENANCE_FILE, {"device": "CPU, 2 threads"})
    assert dict(made_from(POCKET, folder / "results"))["device"] == "CPU, 2 threads"
    (folder / "results" / PROVENANCE_FILE).unlink()


def test_tables_say_once_what_is_the_same_in_every_row() -> None:
    frame = pd.DataFrame(
        {"method": ["A (one)", "B"], "seeds": ["5", "5"], "L0 –": ["1.0 ± 0.1", "-2.0 ± 0.1"], "n ↑": ["3", "–"]}
    )
    shown = as_shown(frame)
    assert shown["columns"] == ["method", "L0 –"] and shown["same"] == "seeds 5, n 3"
    assert shown["rows"] == [["A (one)", "1.0\u00a0±\u00a00.1"], ["B", "−2.0\u00a0±\u00a00.1"]]
    assert as_shown(pd.DataFrame({"L0": ["20", "20", "40"], "a": list("xyz")}))["rows"][1][0] == ""


def test_pdf_and_page(made: tuple[bytes, str], evaluated: pd.DataFrame) -> None:
    pdf, html = made
    assert pdf.startswith(b"%PDF-") and b"/CreationDate" not in pdf
    assert len(re.findall(rb"/Type /Page\b", pdf)) <= 12
    for claim in evaluated["id"]:
        assert f'href="claims_details.md#{claim.lower()}">{claim}</a>' in html
    assert "<title>Does time reduce feature absorption?" in html and "<style>:root" in html
    of_others = [re.split("_", name, maxsplit=1) for name in named(SOURCE, "fig") if re.match(BEGIN, name)]
    drawn = [name for begin, name in of_others if (COMMITTED[OTHERS[begin]] / f"{name}.png").is_file()]
    assert html.count("data:image/png;base64,") == 1 + len(drawn)
    assert len(re.findall(r'class="equation"', html)) == html.count("<svg")


def test_figures_and_tables_of_the_prose_exist() -> None:
    assert {re.sub(BEGIN, "", name) for name in named(SOURCE, "fig")} <= set(FIGURES)
    assert {f"table_{re.sub(BEGIN, '', name)}" for name in named(SOURCE, "tab")} <= set(TABLES)


def test_the_page_needs_nothing_but_itself(made: tuple[bytes, str]) -> None:
    """Offline: no script, no style sheet, image or font from elsewhere; links go to the ledger's details beside it."""
    _, html = made
    assert "<script" not in html and "<link" not in html and "@import" not in html and "url(http" not in html
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]{0,20})', html))
    targets = {target for target in re.findall(r'href="([^"]+)"', html) if not target.startswith("#")}
    assert {target.partition("#")[0] for target in targets} == {"claims_details.md"}


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


def test_planted_absorption_that_the_prose_names() -> None:
    rows = [
        {"method": "topk", "planted": share, "absorption_full": found, "absorption_full_known": 0.9 * share}
        for share, *each in ((0.0, 0.1, 0.2), (0.5, 0.6, 0.8), (1.0, 0.3, 0.3))
        for found in each
    ]
    named = real_facts(load_profile("pocket"), replace(synthetic.results(), planted=pd.DataFrame(rows)))["planted"]
    assert named["topk"] == {"none": "0.15", "most": "0.70", "all": "0.30", "known": "0.90"}
    assert {*named["matryoshka_4"].values()} == {"not computed"}


def test_what_single_tables_have_as_the_prose_names_it() -> None:
    named = real_facts(load_profile("pocket"), synthetic.results())
    ten, most = named["perturbation"]["ten"], named["perturbation"]["most"]
    assert [ten["untrained"][m].mean for m in ("tpp", "scr")] == ["0.00", "0.10"] and ten["topk"]["tpp"].mean == "0.01"
    assert [most["untrained"][m].mean for m in ("tpp", "scr")] == ["0.10", "0.10"] and most["topk"][
        "tpp"
    ].mean == "0.30"
    found, absorbed = named["carriers"]["found"], named["carriers"]["absorbed"]
    assert (found["topk"]["named"].mean, found["topk"]["carried"].percent) == ("0.90", "95 %")
    assert named["circuits"]["topk"]["faithful"].percent == "9 %"
    assert named["endings"]["topk"]["absorption_full"].mean == "0.200"
    for missing in (
        ten["permuted"]["tpp"],
        absorbed["untrained"]["named"],
        named["endings"]["tied"]["absorption_full"],
    ):
        assert missing.mean == missing.percent == "not computed"


def test_the_field_as_the_prose_names_it() -> None:
    results, profile = synthetic.results(), load_profile("pocket")
    named = facts(profile, results, evaluate_claims(profile, results), load_claims(), of_field=results)
    assert named["bar"] == {"ideas": "1", "better": "none", "most": "2", "measures": "11"}
    assert named["hidden"]["share"] == "10 %" and named["hidden"]["most"]["absorption_full"].known
    assert named["real"]["along"]["topk"] == {"half": "0.08", "end": "0.18"}
    assert named["real"]["along"]["jumprelu"]["end"] == "not computed"
    bare = facts(profile, results, evaluate_claims(profile, results), load_claims())
    assert {*bare["bar"].values(), bare["hidden"]["share"], str(bare["hidden"]["most"]["l0"])} == {"not computed"}
