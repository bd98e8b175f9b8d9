"""A study of many hours, a sitting at a time: `make study PROFILE=smollm2 HOURS=2`.

README.md says in which order, and what is kept: rows (`rows`) in `figures/<profile>/rows`, and beside them, at the end
of a sitting, the tables and figures that they allow.
"""

import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd
from tqdm import tqdm

from sae_lib.profiles import runs
from sae_lib.profiles.runs import ABLATION_GROUPS, FAIR, MAIN_GROUPS, Calibration, RunSpec, plan_runs
from sae_lib.report.claims.ledger import evaluate_claims, write_claims
from sae_lib.report.figures.write import FIGURES, write_figure
from sae_lib.report.results import Results
from sae_lib.report.tables.write import TABLES, write_table
from sae_lib.study import extras
from sae_lib.study.comparisons import write_tables
from sae_lib.study.experiment import Experiment, choose_atm
from sae_lib.study.rows import is_known, keep, restore, scores_of
from sae_lib.study.scoring import evaluate, score_inputs, score_keys
from sae_lib.study.show import probe_letters
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import write_parquet

EXPLAINING = ("as_written", "sequence", "collapse")  # the first paper's main result
FIRST_ABLATIONS, LAST_ABLATIONS = ("factorial",), ("atm_importance", "sensitivity")  # before and after EXPLAINING
FIRST_SEEDS = 3  # of the main table, before what explains the first paper's
SWEPT = ("sweep", "fair_sweep")  # whose L0 on the calibration documents decides
ROUNDS = 2  # SAEs a worker trains before they are scored together: no core waits for long, and little is at stake


class Step(NamedTuple):
    """SAEs that are made one after the other, what they are for, and what is wanted beside their scores."""

    what: str
    specs: list[RunSpec]
    extra: extras.Extra | None = None


def steps(experiment: Experiment, missing: Sequence[RunSpec]) -> Iterator[Step]:
    """The whole study in order; it ends early where what comes next depends on SAEs that a sitting left undone, which
    its caller adds to `missing`."""
    profile = experiment.profile
    swept, seeds = profile.sweep.coefficients, profile.training.seeds
    table = tuple(group for group in MAIN_GROUPS if group not in ("sweep", "as_written"))
    first, others, few = seeds[:FIRST_SEEDS], seeds[FIRST_SEEDS:], profile.training.ablation_seeds
    # No L1 method is among those in which absorption is planted, so that it does not wait for the sweep.
    planted = plan_runs(profile, None, ["main"], runs.PLANTED, few)
    carriers = planted + plan_runs(profile, None, ["untrained", "control"], None, few)
    endings = carriers + plan_runs(profile, None, ["main"], profile.beside)
    # The first paper's two, and methods that are told their L0, to see whether training is long enough.
    followed = runs.FOLLOWED.items() if profile.ablations.collapse else ()
    along = [spec for group, names in followed for spec in plan_runs(profile, None, [group], names, seeds[:1])]

    def by_seed(groups: Sequence[str], some: Sequence[int], known: Calibration | None = None) -> list[RunSpec]:
        """Seeds in one step, so that no core waits at the end of each."""
        return [spec for seed in some for spec in plan_runs(profile, known, groups, None, [seed])]

    def lacks(group: str) -> bool:
        return any(spec.group == group for spec in missing)

    def fair_atm() -> Iterator[Step]:
        grid = plan_runs(profile, known, ["atm_grid"])
        yield Step("grid of ATM's c and r", grid)
        if not runs.fairly_compared(profile) or lacks("atm_grid"):
            return
        chosen = choose_atm(evaluate(experiment, grid, runs.ABLATION_SCORES).rows)
        fair = known.model_copy(update={"fair": chosen})
        for method in FAIR:
            yield Step(f"sweep of {method} for a fair ATM", plan_runs(profile, fair, ["fair_sweep"], [method]))
            if lacks("fair_sweep"):
                return
            fair = experiment.match_fair(fair, method)
        yield Step("a fair ATM", by_seed(["atm_fair"], seeds, fair))

    for seed in first:
        told = [spec for spec in by_seed(table, [seed]) if spec.method not in swept]
        told.sort(key=lambda spec: not spec.trained)  # pairs that train
        yield Step(f"told their L0, and controls, seed {seed}", told)
    yield Step("planted absorption", planted, extras.PLANTED_CURVE)
    yield Step("carrier test", carriers, extras.CARRIERS)
    yield Step("targeted probe perturbation", carriers, extras.PERTURBED)
    # Dropout masks as much as ATM turns out to.
    alone = [spec for method in swept if method != "dropout" for spec in runs.sweep_runs(profile, method)]
    yield Step("coefficients as written, and a sweep of the L1 methods", by_seed(["as_written"], seeds[:1]) + alone)
    if lacks("sweep"):
        return
    known = experiment.calibrate()
    if "dropout" in swept:
        yield Step("sweep of dropout", runs.sweep_runs(profile, "dropout", known.dropout_probability))
    yield Step("main table, the first seeds", by_seed(table, first, known))
    yield Step("what explains the first paper's table", by_seed(EXPLAINING, seeds[:1], known))
    yield Step("absorption of word endings", endings, extras.ENDINGS)
    yield Step("absorption along the run", along, extras.TRAJECTORY)
    yield from fair_atm()
    yield Step("circuits of letters", carriers, extras.CIRCUITS)
    yield Step("main table, the other seeds", by_seed(table, others, known))
    for group in ("sweep", *FIRST_ABLATIONS):
        yield Step(group, plan_runs(profile, known, [group]))
    rest = [seed for seed in few if seed != seeds[0]]
    yield Step("what explains the first paper's table, the other seeds", by_seed(EXPLAINING, rest, known))
    for group in LAST_ABLATIONS:
        yield Step(group, plan_runs(profile, known, [group]))
    yield Step("coefficients as written, all seeds", plan_runs(profile, known, ["as_written"]))
    yield Step("automatic interpretation", carriers, extras.INTERPRETED)


def sit(experiment: Experiment, hours: float) -> bool:
    """Go on with the study of `experiment` for so many hours; an SAE that is begun is finished. Returns whether all of
    it is done. With 0 hours nothing is trained: only the tables and figures of what is known are written.

    Raises ArtifactError: `hours` is no number of 0 or more.
    """
    if not 0 <= hours < math.inf:
        raise ArtifactError(f"hours: {hours:g} is no time to go on for; give a number of 0 or more")
    until = time.monotonic() + 3600 * hours
    experiment.prepare()
    known: dict[RunSpec, None] = {}
    missing: list[RunSpec] = []
    for what, specs, extra in steps(experiment, missing):
        restore(experiment, specs)
        keys, folders = score_keys(experiment), experiment.run_folders(specs)
        todo = [spec for spec in specs if not is_known(folders[spec], spec, keys)]
        if extra:
            todo = extra.missing(experiment, specs)
        while todo and time.monotonic() < until:
            size = ROUNDS * experiment.workers
            chunk, todo = todo[:size], todo[size:]
            tqdm.write(f"{time.strftime('%H:%M')} {what}: {len(specs) - len(todo) - len(chunk)} of {len(specs)} done")
            experiment.train(chunk)
            if extra:
                extra.of(experiment, chunk)
            experiment.calibration_l0([spec for spec in chunk if spec.group in SWEPT])
            for scores in dict.fromkeys(map(scores_of, chunk)):  # groups of one step may be scored by others
                evaluate(experiment, [spec for spec in chunk if scores_of(spec) == scores], scores)
            keep(experiment, chunk)
        finished = [spec for spec in specs if is_known(folders[spec], spec, keys)]
        keep(experiment, finished)  # also what a sitting had scored when it was interrupted
        known |= dict.fromkeys(finished)
        missing += todo
    if hours and not missing:
        write_tables(experiment)
    publish(experiment, [*known])
    return not missing


def publish(experiment: Experiment, specs: Sequence[RunSpec]) -> None:
    """Write results, tables, figures and the ledger of those SAEs. A table or figure that lacks rows is left out, and
    goes where an older one is there."""
    profile, folder = experiment.profile, experiment.paths.figures
    tables = {extra.name: extra.known(experiment, specs) for extra in extras.EXTRAS}
    tables["probe"] = probe_letters(score_inputs(experiment).reference("absorption"))
    for part, groups in (("main", MAIN_GROUPS), ("ablations", ABLATION_GROUPS)):
        if of_part := [spec for spec in specs if spec.group in groups]:
            found = evaluate(experiment, of_part, scores_of(of_part[0]))
            made = {"evaluation": found.rows, "history": experiment.train(of_part), **found.tables}
            made["probing_tasks"] = made.pop("tasks", pd.DataFrame())
            tables |= {f"{name}_{part}": table for name, table in made.items()}
    for name, table in tables.items():
        if len(table):
            write_parquet(folder / "results" / f"{name}.parquet", table, index=False)
    results = Results.load(folder / "results")
    for name in (*TABLES, *FIGURES):
        try:
            if name in TABLES:
                write_table(results.into(TABLES[name], profile), name, folder)
            else:
                write_figure(name, results, profile, folder)
        except (ArtifactError, ValueError, KeyError, IndexError) as error:
            tqdm.write(f"{name}: left out, {error}")
            for ending in ("csv", "md", "pdf", "png"):
                (folder / f"{name}.{ending}").unlink(missing_ok=True)
    write_claims(evaluate_claims(profile, results), profile, folder)
