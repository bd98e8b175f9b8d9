"""The paper: one prose template, filled from the results, as `paper.pdf` and as a self-contained `paper.html`.

Typst sets both, from its wheel: no TeX, no network, its own fonts. Nothing in it depends on the day or the machine, so
the same results give the same bytes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any, Literal, cast

import pandas as pd
import typst
import yaml

from sae_lib.profiles.profile import Profile
from sae_lib.report.claims.file import load_claims
from sae_lib.report.claims.ledger import evaluate_claims
from sae_lib.report.claims.links import evidence_links, notebook_cells
from sae_lib.report.paper.facts import made_from, sentences
from sae_lib.report.paper.template import PROSE, rendered
from sae_lib.report.paper.values import quantities
from sae_lib.report.results import Results
from sae_lib.report.tables.write import TABLES, make_table
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import atomic_write

HERE = Path(__file__).parent
TITLE = "Does time reduce feature absorption? TemporalSAE and ATM, reproduced"
# Figures of the paper, with what a reader who cannot see them is told.
FIGURES = {
    "absorption_picture": "Heat maps of activations and decoder cosines on toy data, by method",
    "toy_matched": "Absorption, entanglement, reconstruction and sparsity of every method on toy data",
    "toy_rho": "The same four quantities against the persistence of features",
    "toy_importance": "The same four quantities with parts of ATM's importance dropped",
    "pareto": "Absorption, explained variance, CE score and sparse probing against L0, by method",
    "ablation_effects": "Main effects with intervals",
    "stability": "Stability across seeds, contexts and tokens, by method",
    "training_curves": "Losses and explained variance over training, by method",
    "absorption_by_letter": "Absorption by letter and method",
}
# Names of rows up to this length stay on one line.
_SHORT = 24
# Html export is young, so Typst warns of it; page settings are for the PDF alone.
_EXPECTED = ("html export is under active development", "page set rule was ignored during HTML export")


def build_paper(profile: Profile, figures: Path | str, out: Path | str | None = None) -> list[Path]:
    """Write `paper.pdf` and `paper.html` from what notebook 05 left in the figures folder.

    Args:
        profile: the profile that the results belong to.
        figures: the folder with `results/*.parquet` and the figures (PDF and PNG). A figure or table that was not made
            is said to be missing.
        out: where the two files go; `figures` if not given.

    Returns:
        The two paths.

    Raises:
        ArtifactError: no results; a number typed into the prose; markup that Typst refuses.
    """
    figures, out = Path(figures), Path(out if out is not None else figures)
    results = Results.load(figures / "results")
    if results.evaluation.empty:
        raise ArtifactError(f"paper: no evaluated SAEs in {figures / 'results'}; run notebooks 01 to 05 first")
    entries, cells = load_claims(), notebook_cells()
    claims: list[dict[str, Any]] = evaluate_claims(profile, results, entries).to_dict("records")
    for claim, entry in zip(claims, entries, strict=True):
        claim["links"] = [list(link) for link in evidence_links(entry.shown, cells)]
    references = yaml.safe_load((HERE / "references.yaml").read_text(encoding="utf8"))
    names = quantities(results) | sentences(profile, results, claims, entries)
    prose = rendered(PROSE.read_text(encoding="utf8"), names | {"references": references, "title": TITLE})
    data: dict[str, Any] = {
        "tables": _tables(profile, results),
        "claims": claims,
        "facts": made_from(profile, figures / "results"),
        "figures": {
            name: alt for name, alt in FIGURES.items() if all(path.is_file() for path in _files(figures, name))
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "main.typ").write_text(prose, encoding="utf8")
        shutil.copy(HERE / "style.typ", root)
        for name, content in data.items():
            (root / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf8")
        for name in data["figures"]:
            for path in _files(figures, name):
                shutil.copy(path, root)
        css = (HERE / "paper.css").read_text(encoding="utf8")
        page = _compiled(root, "html").decode("utf8").replace("</head>", f"<style>{css}</style></head>", 1)
        made = {out / "paper.pdf": _compiled(root, "pdf"), out / "paper.html": page.encode("utf8")}
    for path, content in made.items():
        with atomic_write(path, "wb") as file:
            file.write(content)
    return list(made)


def _files(figures: Path, name: str) -> list[Path]:
    """A figure for the PDF and for the page."""
    return [figures / f"{name}.pdf", figures / f"{name}.png"]


def _compiled(root: Path, output: Literal["pdf", "html"]) -> bytes:
    try:
        compiler = typst.Compiler(root / "main.typ", root=root, ignore_system_fonts=True)
        content, noted = compiler.compile_with_warnings(format=output, timestamp=0)
    except typst.TypstError as error:
        raise ArtifactError(f"paper: Typst refuses the {output}: {error.message}; {error.diagnostic.strip()}") from None
    for note in noted:
        if not any(text in note.message for text in _EXPECTED):
            warnings.warn(f"paper, {output}: {note.message}", stacklevel=2)
    return cast(bytes, content)


def _tables(profile: Profile, results: Results) -> dict[str, dict[str, Any]]:
    """Name -> columns and rows, as shown, of every table that the results allow."""
    made = {}
    for name in TABLES:
        try:
            frame = make_table(name, results, profile).shown
        except ArtifactError:  # no rows: the paper says so where the table would stand
            continue
        if len(frame):
            made[name.removeprefix("table_")] = as_shown(frame)
    return made


def as_shown(frame: pd.DataFrame) -> dict[str, Any]:
    """Columns and rows, with what is the same in every row apart, true minus signs, and numbers that do not break."""
    text = frame.astype(str)
    first, *others = text.columns
    values = {column: set(text[column]) - {"–"} for column in others}
    constant = {column: value.pop() for column, value in values.items() if len(value) == 1 and len(text) > 1}
    shown = text.drop(columns=list(constant))
    for column in shown.columns[1:]:
        for typed, printed in (("-", "−"), (" ± ", "\u00a0±\u00a0"), (", ", ",\u00a0"), ("] *", "]\u00a0*")):
            shown[column] = shown[column].str.replace(typed, printed, regex=False)
    short = shown[first].str.len() <= _SHORT
    shown.loc[short, first] = shown.loc[short, first].str.replace(" ", "\u00a0")
    if text[first].duplicated().any():  # rows in groups: the group is named once
        shown[first] = text[first].mask(text[first].duplicated(), "")
    same = ", ".join(f"{column.rstrip(' –↑↓')} {value}" for column, value in constant.items())
    return {"columns": list(shown.columns), "rows": shown.to_numpy().tolist(), "same": same}
