"""Every verdict that rests on results changes with them, and `verify` notices: one mutation for each check."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sae_lib.report.claims import data_checks, ledger
from sae_lib.report.claims.data_checks import KINDS
from sae_lib.report.claims.file import Claim, load_claims
from sae_lib.report.claims.ledger import evaluate_claims, verify, write_verdicts
from sae_lib.report.claims.paper_checks import PAPER_CHECKS
from sae_lib.report.claims.verdicts import Verdict
from sae_lib.report.results import PAIR_METRICS, Results, select
from tests.report import synthetic
from tests.report.synthetic import GEMMA, POCKET, save

CLAIMS = {claim.id: claim for claim in load_claims()}
Options = Mapping[str, Any]
FAR = 50.0


def consistent(claim: Claim) -> bool:
    numbers = {number.name: number.value for number in claim.published}
    return not claim.paper_check or PAPER_CHECKS[claim.paper_check](numbers)[0]


# A claim's verdict on Gemma rests on its numbers where there are any and the paper agrees with itself.
CHECKED = [(claim.id, "at_this_scale") for claim in CLAIMS.values() if claim.data_check]
CHECKED += [(claim.id, "ground_truth") for claim in CLAIMS.values() if claim.toy_check]
CHECKED += [(claim.id, "verdict") for claim in CLAIMS.values() if claim.tolerance and consistent(claim)]


def moved(results: Results, table: str, chosen: pd.Series, column: str, by: float) -> Results:
    rows = getattr(results, table).copy()
    assert chosen.any()
    rows.loc[chosen, column] = pd.to_numeric(rows.loc[chosen, column]) + by
    return replace(results, **{table: rows})


def of_method(rows: pd.DataFrame, group: str, method: str) -> pd.Series:
    return rows.index.isin(select(rows, group, method).index)


def towards(results: Results, table: str, chosen: pd.Series, options: Options, verdict: str) -> Results:
    """Contradicted where it was not, by the first metric that is wanted; or else as wanted in all of them."""
    wants = [want for want in options["wants"] if want["metric"] not in PAIR_METRICS]
    for want in wants if verdict == Verdict.CONTRADICTED else wants[:1]:
        sign = 1 if (want["want"] == "higher") == (verdict == Verdict.CONTRADICTED) else -1
        column = {"l1_per_l0": "l1"}.get(want["metric"], want["metric"])
        results = moved(results, table, chosen, column, sign * FAR * (100 if column in ("l0", "l1") else 1))
    return results


def mutate_table(results: Results, table: str, options: Options, verdict: str) -> Results:
    """Of checks that compare methods, mechanisms or parts of the importance."""
    rows, kind = getattr(results, table), options["kind"]
    toy = table == "toy_summary"
    if kind in ("contrast", "level"):
        group, method = options.get("group", "main"), options.get("first", options.get("method"))
        chosen = (
            (rows["experiment"] == KINDS[kind][1]) & (rows["toy"] == options["toy"]) & (rows["method"] == method)
            if toy
            else of_method(rows, group, method)
        )
    elif kind == "main_effects":
        inside = rows["experiment"] == "factorial" if toy else rows["group"] == "factorial"
        chosen = inside & (rows[options["factors"][0]] == True)  # noqa: E712 - a column of objects
    else:
        inside = rows["experiment"] == "importance" if toy else rows["group"] == "atm_importance"
        chosen = inside & (rows["dropped"] == "contribution")
    return towards(results, table, chosen, options, verdict)


def no_rare_absorption(results: Results, options: Options, verdict: str) -> Results:
    return replace(results, letters=results.letters.assign(absorption_full=0.0))


def alpha_against_loss(results: Results, options: Options, verdict: str) -> Results:
    history = results.history
    return replace(results, history=history.assign(alpha=-history["reconstruction"].where(history["alpha"].notna())))


def scaling_swapped(results: Results, options: Options, verdict: str) -> Results:
    rows = results.evaluation.copy()
    inside = rows["group"] == "factorial"
    rows.loc[inside, "gradient_scaling"] = ~rows.loc[inside, "gradient_scaling"].astype(bool)
    return replace(results, evaluation=rows)


def other_fluctuation(results: Results, options: Options, verdict: str) -> Results:
    """The method that should fluctuate more is made smooth, the other way round where that is so already."""
    rows = results.history.copy()
    chosen = (rows["group"] == "main") & (rows["method"] == options["first"])
    step = rows.loc[chosen, "step"]
    smooth = np.exp(-step / 1e3 + 1e-5 * rows.loc[chosen, "seed"] * np.sin(step))
    rough = np.exp(np.where(step % 40 == 0, 1.0, -1.0) * rows.loc[chosen, "seed"] / 10)
    rows.loc[chosen, "reconstruction"] = (
        smooth if (options["want"] == "higher") != (verdict == Verdict.CONTRADICTED) else rough
    )
    return replace(results, history=rows)


def one_seed_less(results: Results, options: Options, verdict: str) -> Results:
    rows = results.evaluation
    return replace(results, evaluation=rows[~(of_method(rows, "main", "atm") & (rows["seed"] == 46))])


def insensitive(results: Results, options: Options, verdict: str) -> Results:
    rows = results.evaluation.copy()
    rows.loc[rows["group"] == "sensitivity", list(options["metrics"])] = 0.5
    return replace(results, evaluation=rows)


def early_collapse(results: Results, options: Options, verdict: str) -> Results:
    rows = results.evaluation.copy()
    without = (rows["group"] == "sensitivity") & (rows["varied"] == "warm_up")
    rows.loc[without, "explained_variance"] = (0.9 if verdict == Verdict.REPRODUCED else 0.1) + 0.001 * rows["seed"]
    return replace(results, evaluation=rows)


OTHER: dict[str, Callable[[Results, Options, str], Results]] = {
    "rare_letters": no_rare_absorption,
    "alpha_follows_loss": alpha_against_loss,
    "dominance": scaling_swapped,
    "fluctuation": other_fluctuation,
    "seeds": one_seed_less,
    "sensitivity": insensitive,
    "warm_up": early_collapse,
}


def as_published(results: Results, claim: Claim, verdict: str) -> Results:
    """Every number of the claim that has a row of ours is what the paper prints; or twice that, where they agree."""
    factor = 2.0 if verdict == Verdict.REPRODUCED else 1.0
    tables = {"evaluation": results.evaluation.copy(), "letters": results.letters.copy()}
    for number in claim.published:
        if not number.metric:
            continue
        name = "evaluation" if not number.letter else "letters"
        rows = tables[name]
        chosen = of_method(rows, number.group, number.method)
        if number.letter:
            chosen &= rows["letter"] == number.letter
            if not chosen.any():
                run = {"method": "temporal_sae", "paper_run": number.method}
                keys = {"run": "x", "group": number.group, "label": "", "letter": number.letter} | run
                added = [keys | {"seed": seed, number.metric: factor * float(number.value)} for seed in (42, 43)]
                tables[name] = pd.concat([rows, pd.DataFrame(added)], ignore_index=True)
                continue
        rows.loc[chosen, number.metric] = factor * float(number.value)
    return replace(results, **tables)


def mutated(results: Results, claim: Claim, column: str, verdict: str) -> Results:
    if column == "verdict":
        return as_published(results, claim, verdict)
    options = claim.data_check if column == "at_this_scale" else claim.toy_check
    if options["kind"] in OTHER:
        return OTHER[options["kind"]](results, options, verdict)
    return mutate_table(results, "evaluation" if column == "at_this_scale" else "toy_summary", options, verdict)


@pytest.fixture(scope="module", autouse=True)
def _one_processor() -> Iterator[None]:
    """What is made up is the same on every processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_checks, "ROUNDING", {})
        yield


@pytest.fixture(scope="module")
def results() -> Results:
    return synthetic.results()


@pytest.fixture(scope="module")
def committed(results: Results, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results as files, and the verdicts on them at both models."""
    folder = save(results, tmp_path_factory.mktemp("committed") / "results")
    verdicts = {}
    for name, profile in {"pocket": POCKET, "gemma": GEMMA}.items():
        evaluated = evaluate_claims(profile, results)
        write_verdicts(evaluated, profile, folder / f"verdicts_{name}.json")
        verdicts[name] = evaluated.set_index("id")
    return {"folder": folder, "verdicts": verdicts}


@pytest.mark.parametrize(("name", "column"), CHECKED, ids=["-".join(check) for check in CHECKED])
def test_a_changed_result_changes_the_verdict_and_verify_fails(
    results: Results, committed: dict[str, Any], tmp_path: Path, monkeypatch, capsys, name: str, column: str
) -> None:
    scale, profile = ("gemma", GEMMA) if column == "verdict" else ("pocket", POCKET)
    before = committed["verdicts"][scale].loc[name, column]
    changed = mutated(results, CLAIMS[name], column, before)
    for each in fields(Results):
        if getattr(changed, each.name) is getattr(results, each.name):
            os.symlink(committed["folder"] / f"{each.name}.parquet", tmp_path / f"{each.name}.parquet")
        else:
            getattr(changed, each.name).to_parquet(tmp_path / f"{each.name}.parquet")
    # The other claims' verdicts are not looked at: they may change too.
    monkeypatch.setattr(ledger, "load_claims", lambda: [CLAIMS[name]])
    expected = committed["folder"] / f"verdicts_{scale}.json"
    assert verify(profile, committed["folder"], expected) == 0
    capsys.readouterr()
    assert verify(profile, tmp_path, expected) == 1
    printed = capsys.readouterr().out
    assert f"DIFFERS {name} {column}: '" in printed and f"', committed '{before}'" in printed


def test_every_claim_is_answered_by_results_or_by_the_paper() -> None:
    """What no result decides is decided by the papers' own numbers."""
    by_results = {name for name, _ in CHECKED}
    rest = {claim.id: claim for claim in CLAIMS.values() if claim.id not in by_results}
    assert all(claim.paper_check for claim in rest.values())
    inconsistent = {claim.id for claim in CLAIMS.values() if not consistent(claim)}
    assert set(rest) - inconsistent == {"T-20"}
