"""The paper: `paper.typ`, filled in from the results, as `paper.pdf` and as a self-contained `paper.html`, both set by
Typst from its wheel: no TeX, no network, its own fonts. The same results give the same bytes."""

import json
import re
import shutil
import tempfile
import textwrap
import warnings
from pathlib import Path
from typing import Any, Literal, cast

import pandas as pd
import typst

from sae_lib.profiles.profile import Profile, load_profile
from sae_lib.report.claims.file import load_claims
from sae_lib.report.claims.ledger import REAL_MODEL, evaluate_claims
from sae_lib.report.paper.facts import facts, filled, made_from
from sae_lib.report.results import Results
from sae_lib.report.tables.write import make_tables
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import atomic_write
from sae_lib.util.paths import COMMITTED

HERE = Path(__file__).parent
# Profiles whose committed results stand in the paper of every profile, and how the names of their figures and tables
# begin there: the real language model, and the rest of the field.
OTHERS = {"real": REAL_MODEL, "field": "field"}
PROSE = HERE / "paper.typ"
# Html export is young, so Typst warns of it; page settings are for the PDF alone.
_EXPECTED = ("html export is under active development", "page set rule was ignored during HTML export")


def build_paper(profile: Profile, figures: Path | str, out: Path | str | None = None) -> list[Path]:
    """Write `paper.pdf` and `paper.html` into `out` (`figures` if not given) from what notebook 05 left in the folder
    `figures`: `results/*.parquet`, which belong to `profile`, and the figures. What was not made is said to be missing.

    Raises ArtifactError: no results; an unknown name in the prose; markup that Typst refuses.
    """
    figures, out = Path(figures), Path(out if out is not None else figures)
    results = Results.load(figures / "results")
    if results.evaluation.empty:
        raise ArtifactError(f"paper: no evaluated SAEs in {figures / 'results'}; run notebooks 01 to 05 first")
    prose, entries = PROSE.read_text(encoding="utf8"), load_claims()
    evaluated = evaluate_claims(profile, results, entries)
    own = (profile, results, figures)
    others = {name: own if profile.name == other else _committed(other) for name, other in OTHERS.items()}

    def source(name: str) -> tuple[tuple[Profile, Results, Path], str]:
        first, _, rest = name.partition("_")
        return (others[first], rest) if first in others else (own, name)

    drawn, tables = {}, {}
    for name in named(prose, "fig"):
        (*_, folder), figure = source(name)
        if all((folder / f"{figure}.{ending}").is_file() for ending in ENDS):
            drawn[name] = folder / figure
    for name in named(prose, "tab"):
        (of, known, _), bare = source(name)
        for table in make_tables(known, of, [f"table_{bare}"]).values():
            shown = as_shown(table.shown)
            if len(table.shown) and len(shown["columns"]) > 1:
                tables[name] = shown | {"caption": table.caption}
    data = {
        "tables": tables,
        "claims": [_line(claim) for claim in evaluated.to_dict("records")],
        "facts": made_from(profile, figures / "results"),
        "figures": [*drawn],
    }
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        text = filled(prose, facts(profile, results, evaluated, entries, others["real"][:2], others["field"][1]))
        (root / "main.typ").write_text(text, encoding="utf8")
        (root / "data.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf8")
        for path in (HERE / "style.typ", HERE / "references.bib"):
            shutil.copy(path, root)
        for name, path in drawn.items():
            for ending in ENDS:
                shutil.copy(path.with_suffix(f".{ending}"), root / f"{name}.{ending}")
        css = (HERE / "paper.css").read_text(encoding="utf8")
        page = _compiled(root, "html").decode("utf8").replace("</head>", f"<style>{css}</style></head>", 1)
        made = {out / "paper.pdf": _compiled(root, "pdf"), out / "paper.html": page.encode("utf8")}
    for path, content in made.items():
        with atomic_write(path, "wb") as file:
            file.write(content)
    return list(made)


def _committed(name: str) -> tuple[Profile, Results, Path]:
    kept = COMMITTED[name] / "results"
    return load_profile(name), Results.load(kept) if kept.is_dir() else Results(), COMMITTED[name]


# A column whose value is lacking in this share of the rows says nothing of every row.
_MOST = 0.6
# A figure for the PDF and for the page.
ENDS = ("pdf", "png")


def named(prose: str, kind: Literal["fig", "tab"]) -> list[str]:
    return re.findall(rf'#{kind}\("(\w+)"', prose)


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


def _line(claim: dict[str, Any]) -> dict[str, str]:
    """A claim as a line of the ledger: the number that decided comes without the sentence around it."""
    apart = {"setting": " (a setting)"}.get(claim["about"], f" (= {claim['same_as']})" if claim["same_as"] else "")
    decided = re.split(r" \(n = |[;:]", claim["number"])[0].replace("-", "−")
    kept = {name: claim[name] for name in ("id", "verdict", "at_this_scale", "on_real", "ground_truth")}
    return kept | {"short": claim["short"] + apart, "number": textwrap.shorten(decided, 44, placeholder=" …")}


def as_shown(frame: pd.DataFrame) -> dict[str, Any]:
    """Columns and rows, with what is the same in every row apart, true minus signs, and numbers that do not break."""
    text = frame.astype(str)
    first, *others = text.columns
    values = {column: sorted({*text[column]} - {"–"}) for column in others}
    lacking = {column: (text[column] == "–").mean() for column in others}  # rows of differences have no counts
    constant = {c: v for c, v in values.items() if len(text) > 1 and len(v) < 2 and (not v or lacking[c] < _MOST)}
    shown = text.drop(columns=list(constant))
    for column in shown.columns[1:]:
        for typed, printed in ((r"-(?=\d)", "−"), (" ± ", "\u00a0±\u00a0"), (r"(?<=\d), ", ",\u00a0")):
            shown[column] = shown[column].str.replace(typed, printed, regex=True)
    shown[first] = shown[first].mask(text[first].duplicated(), "")  # rows in groups: the group is named once
    same = ", ".join(f"{column.rstrip(' –↑↓')} {value[0]}" for column, value in constant.items() if value)
    return {"columns": list(shown.columns), "rows": shown.to_numpy().tolist(), "same": same}
