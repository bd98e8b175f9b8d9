from __future__ import annotations

import itertools
from collections import Counter

import pytest

from sae_lib.profiles.profile import load_profile
from sae_lib.profiles.runs import (
    ABLATION_GROUPS,
    FAIR,
    MAIN_GROUPS,
    Calibration,
    expected_calibration,
    plan_runs,
    sweep_runs,
)
from sae_lib.training.run import run_key

PROFILE = load_profile("pocket").model_copy(update={"controls": ("permuted", "soft_frozen")})
KNOWN = Calibration(
    coefficients={"standard": 0.011, "gated": 0.012, "temporal_sae": 0.022, "atm": 0.033, "dropout": 0.044},
    dropout_probability=0.27,
)
SEEDS, ABLATION_SEEDS = len(PROFILE.training.seeds), len(PROFILE.training.ablation_seeds)


def runs(group):
    return plan_runs(PROFILE, KNOWN, (group,))


def key(spec):
    return run_key(spec.config, "store", PROFILE.data, PROFILE.training, spec.seed)


def test_what_stands_beside_has_few_seeds_and_no_sweep():
    profile = load_profile("smollm2")
    named = [spec for spec in plan_runs(profile) if spec.method in profile.beside]
    assert {spec.group for spec in named} == {"main"}
    assert Counter(spec.method for spec in named) == dict.fromkeys(profile.beside, len(profile.training.ablation_seeds))
    assert {spec.seed for spec in named} == {*profile.training.ablation_seeds} < {*profile.training.seeds}


def test_counts():
    counts = Counter(spec.group for spec in plan_runs(PROFILE, KNOWN))
    ablations, sweep = PROFILE.ablations, PROFILE.sweep
    assert counts == {
        "sweep": len(sweep.seeds)
        * (
            sum(len(values) for values in sweep.coefficients.values())
            + len(sweep.levels) * (len(PROFILE.main_methods) - len(sweep.coefficients))
        ),
        "main": len(PROFILE.main_methods) * SEEDS,
        "untrained": SEEDS,
        "control": len(PROFILE.controls) * SEEDS,
        "as_written": len(PROFILE.as_written) * SEEDS,
        "factorial": 8 * ABLATION_SEEDS,
        "sequence": 4 * ABLATION_SEEDS,
        "sensitivity": (2 + len(ablations.temporal_coefficients) + len(ablations.resampling_thresholds))
        * ABLATION_SEEDS,
        "atm_importance": 5 * ABLATION_SEEDS,
        "atm_grid": len(ablations.atm_c) * len(ablations.atm_r) * len(ablations.atm_grid_seeds),
        "fair_sweep": sum(len(sweep.coefficients[method]) for method in FAIR) * len(sweep.seeds),
        "atm_fair": 2 * SEEDS,
    }
    assert {*counts, "collapse"} == {*MAIN_GROUPS, *ABLATION_GROUPS}, "no profile but one takes the collapse apart"
    parts = [*plan_runs(PROFILE, KNOWN, MAIN_GROUPS), *plan_runs(PROFILE, KNOWN, ABLATION_GROUPS)]
    assert parts == plan_runs(PROFILE, KNOWN)


def test_as_written_may_have_seeds_of_its_own():
    asked = PROFILE.model_copy(update={"ablations": PROFILE.ablations.model_copy(update={"as_written_seeds": (42,)})})
    assert {spec.seed for spec in plan_runs(asked, KNOWN, ("as_written",))} == {42}
    assert {spec.seed for spec in plan_runs(asked, KNOWN, ("main",))} == {*PROFILE.training.seeds}


def test_a_group_that_does_not_exist():
    with pytest.raises(ValueError, match="factorail"):
        plan_runs(PROFILE, KNOWN, ("factorail",))


def test_every_factorial_cell_with_every_seed():
    cells = Counter(
        (s.config.temporal is not None, s.config.resampling is not None, s.config.gradient_scaling is not None, s.seed)
        for s in runs("factorial")
    )
    wanted = itertools.product((False, True), (False, True), (False, True), PROFILE.training.ablation_seeds)
    assert cells == Counter(wanted)
    labels = {s.label for s in runs("factorial")}
    assert {"none", "temporal + resampling + gradient scaling", "resampling"} <= labels and len(labels) == 8


def test_only_the_mechanisms_differ_between_factorial_cells():
    rest = {s.config.model_copy(update=dict.fromkeys(("temporal", "resampling", "gradient_scaling"))).model_dump_json()
            for s in runs("factorial")}  # fmt: skip
    assert len(rest) == 1


def test_every_cell_of_the_atm_grid():
    cells = {(s.config.masking.c, s.config.masking.r) for s in runs("atm_grid") if s.config.masking}
    assert cells == set(itertools.product(PROFILE.ablations.atm_c, PROFILE.ablations.atm_r))


def test_importance_variants():
    parts = {s.label: s.config.masking for s in runs("atm_importance")}
    assert set(parts) == {
        "magnitude+frequency+contribution", "frequency+contribution", "magnitude+contribution", "magnitude+frequency",
        "product",
    }  # fmt: skip
    for label, variant in parts.items():
        assert variant and (label == "product" or "+".join(variant.components) == label)
    assert parts["product"] and parts["product"].combine == "product"
    assert {s.fields["importance"] for s in runs("atm_importance")} == set(parts)
    dropped = {s.fields["dropped"]: s.config.masking.components for s in runs("atm_importance") if s.config.masking}
    assert "contribution" not in dropped["contribution"] and len(dropped["nothing"]) == len(dropped[None]) == 3


def test_shared_runs_are_trained_once():
    """The same SAE in two tables has one key, so one folder."""
    main = {(s.method, s.seed): key(s) for s in runs("main")}
    for group, label in (
        ("factorial", "temporal + resampling + gradient scaling"),
        ("sensitivity", "temporal coefficient 0.0001"),
    ):  # fmt: skip
        found = {s.seed: key(s) for s in runs(group) if s.label == label}
        assert found == {seed: main["temporal_sae", seed] for seed in PROFILE.training.ablation_seeds}
    whole = [s for s in runs("atm_importance") if s.label == "magnitude+frequency+contribution"]
    assert {key(s) for s in whole} == {main["atm", s] for s in PROFILE.training.ablation_seeds}
    assert not {s.seed for s in runs("atm_grid")} & {*PROFILE.training.seeds}, "chosen on other seeds than judged on"
    assert len(set(main.values())) == len(main)
    written = {s.seed: key(s) for s in runs("as_written") if s.method == "temporal_sae"}
    fourth = {s.seed: key(s) for s in runs("sequence") if s.label == "run 4"}
    assert fourth == {seed: written[seed] for seed in PROFILE.training.ablation_seeds}
    assert not {key(s) for s in runs("sequence")} & set(main.values())


def test_the_papers_four_runs_add_one_thing_at_a_time():
    configs = {s.label: s.config for s in runs("sequence")}
    one, two, three, four = (configs[f"run {i}"] for i in (1, 2, 3, 4))
    assert one.temporal and two.temporal
    assert (one.optimizer.clip_norm, one.temporal.coefficient) == (1.0, 1e-3)
    assert (two.optimizer.clip_norm, two.temporal.coefficient) == (0.1, 1e-4)
    assert [c.resampling is not None for c in (one, two, three, four)] == [False, False, True, True]
    assert [c.gradient_scaling is not None for c in (one, two, three, four)] == [False, False, False, True]
    assert four == PROFILE.sae_config("temporal_sae"), "at the paper's own sparsity coefficient"


def test_main_table_is_at_the_calibrated_sparsity():
    configs = {s.method: s.config for s in runs("main")}
    assert {m: configs[m].l1_coefficient for m in KNOWN.coefficients} == KNOWN.coefficients
    assert configs["dropout"].dropout and configs["dropout"].dropout.probability == 0.27
    assert configs["topk"].k == configs["batchtopk"].k == PROFILE.sweep.target_l0
    assert configs["jumprelu"].target_l0 == PROFILE.sweep.target_l0
    assert Counter(s.seed for s in runs("main")) == Counter(
        {seed: len(PROFILE.main_methods) for seed in PROFILE.training.seeds}
    )


def test_as_written_is_not_calibrated():
    for spec in runs("as_written"):
        if spec.config.architecture == "standard":
            assert spec.config.l1_coefficient == 0.04
    assert {s.method for s in runs("as_written")} == set(PROFILE.as_written)


def test_untrained_saes_have_the_sparsity_of_the_others():
    assert all(not s.trained and s.config.k == PROFILE.sweep.target_l0 for s in runs("untrained"))
    untrained = {s.method for group in (*MAIN_GROUPS, *ABLATION_GROUPS) for s in runs(group) if not s.trained}
    assert untrained == {"untrained", "permuted"}


def test_controls_are_topk_in_all_else():
    topk = {s.seed: s for s in runs("main") if s.method == "topk"}
    for spec in runs("control"):
        assert spec.config.model_copy(update={"soft_frozen": None}) == topk[spec.seed].config
        assert (spec.config.soft_frozen is not None) == (spec.method == "soft_frozen")
        if spec.method == "permuted":
            assert spec.permuted_from == topk[spec.seed]
    assert not [s for s in plan_runs(load_profile("pocket"), KNOWN) if s.group == "control"]


def test_the_sweep_has_seeds_of_its_own_and_one_knob_for_each_method():
    assert not {*PROFILE.sweep.seeds} & {*PROFILE.training.seeds}
    knobs = {"topk": "k", "batchtopk": "k", "matryoshka_2": "k", "matryoshka_4": "k", "jumprelu": "target_l0"}
    for method in PROFILE.main_methods:
        specs = sweep_runs(PROFILE, method, 0.4)
        knob = knobs.get(method, "l1_coefficient")
        values = PROFILE.sweep.coefficients.get(method, PROFILE.sweep.levels)
        assert Counter((getattr(s.config, knob), s.seed) for s in specs) == Counter(
            itertools.product(values, PROFILE.sweep.seeds)
        )
        assert len({s.config.model_dump_json(exclude={knob}) for s in specs}) == 1
    dropout = sweep_runs(PROFILE, "dropout", 0.4)[0].config.get("dropout")
    assert dropout and dropout.probability == 0.4


def test_every_method_has_five_levels_with_the_main_comparison():
    swept = {
        method: {s.config.model_dump_json() for s in (*runs("main"), *runs("sweep")) if s.method == method}
        for method in PROFILE.main_methods
    }
    assert min(len(configs) for configs in swept.values()) >= 5


def test_plan_before_calibration_counts_the_same():
    assert expected_calibration(PROFILE).coefficients.keys() == PROFILE.sweep.coefficients.keys()
    before, after = plan_runs(PROFILE), plan_runs(PROFILE, KNOWN)
    assert [(s.group, s.method, s.label, s.seed) for s in before] == [
        (s.group, s.method, s.label, s.seed) for s in after
    ]


def test_the_collapse_is_taken_apart_where_a_profile_asks_for_it():
    profile = load_profile("smollm2")
    specs = plan_runs(profile, None, ["collapse"])
    assert {spec.seed for spec in specs} == {*profile.training.ablation_seeds}
    of_seed = {spec.label: spec for spec in specs if spec.seed == 42}
    alone = {label: spec for label, spec in of_seed.items() if label.endswith(" alone")}
    parts = {"temporal penalty": "temporal", "resampling": "resampling", "gradient scaling": "gradient_scaling"}
    for name, part in parts.items():
        config = alone[f"{name} alone"].config
        assert [config.get(other) is not None for other in parts.values()] == [p == part for p in parts.values()]
    assert [spec.label for spec in of_seed.values() if not spec.trained] == ["baseline, untrained"]
    run_2 = next(s for s in plan_runs(profile, None, ["sequence"]) if s.label == "run 2" and s.seed == 42)
    assert alone["temporal penalty alone"].config == run_2.config, "one SAE, trained once"
