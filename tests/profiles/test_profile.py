from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from sae_lib.autoencoders.config import sae_config
from sae_lib.profiles.profile import PROFILES, Profile, load_profile
from sae_lib.report.names import in_order, method_name
from sae_lib.training.recipes import merged, method_recipe
from sae_lib.util.errors import ArtifactError

SHIPPED = sorted(path.stem for path in PROFILES.glob("*.yaml"))


def content() -> dict[str, Any]:
    """A small complete profile, as in a YAML file."""
    return {
        "name": "tiny",
        "description": "for tests",
        "model": {"name": "pocket", "layer": 1},
        "corpus": {"source": "documentation", "packages": ["numpy"]},
        "data": {
            "context_length": 16, "train_tokens": 1000, "held_out_contexts": 2, "calibration_contexts": 2, "window": 4,
            "batch_tokens": 64, "shard_rows": 500,
        },
        "training": {
            "d_sae": 32, "steps": 10, "schedule_scale": 0.005, "seeds": [1, 2], "ablation_seeds": [1], "log_every": 5,
            "checkpoint_every": 5,
        },
        "methods": {
            "topk": {"k": 4}, "batchtopk": {"k": 4}, "matryoshka_2": {"k": 4}, "matryoshka_4": {"k": 4},
            "jumprelu": {"target_l0": 4},
        },
        "sweep": {
            "target_l0": 4,
            "levels": [2, 8],
            "compare_at": [4],
            "coefficients": {method: [0.1, 0.2] for method in ("standard", "gated", "atm", "dropout")},
        },
    }  # fmt: skip


def load(folder: Path, changes: dict[str, Any] | None = None) -> Profile:
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(merged(content(), changes or {})))
    return load_profile(file)


def refusal(folder: Path, changes: dict[str, Any]) -> str:
    with pytest.raises(ArtifactError) as caught:
        load(folder, changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", SHIPPED)
def test_each_shipped_profile_loads(name):
    profile = load_profile(name)
    assert profile.name == name and profile.description
    assert profile.data.batch_tokens % profile.data.window == 0
    for method in profile.main_methods:
        assert profile.sae_config(method).d_sae == profile.training.d_sae
    for method in {"topk", "batchtopk", "jumprelu"} & {*profile.main_methods}:
        config = profile.sae_config(method)
        assert config.get("k") or config.get("target_l0"), "the sparsity of the main table is set"
    for method, overrides in profile.as_written.items():
        profile.sae_config(method, overrides)


def test_a_profile_by_path_and_its_defaults(tmp_path):
    profile = load(tmp_path)
    assert profile.name == "tiny" and profile.training.seeds == (1, 2)
    assert profile.ablations.atm_c == (-0.5, 0.0, 1.0) and profile.ablations.atm_r == (0.5, 1.0, 2.0)
    assert profile.sae_config("topk").get("k") == 4 and profile.sae_config("topk", {"k": 5}).get("k") == 5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"trainning": {}}, "trainning: unknown key; did you mean 'training'?"),
        ({"training": {"stepz": 3}}, "training.stepz: unknown key; did you mean 'steps'?"),
        ({"corpus": {"package": ["numpy"]}}, "corpus.package: unknown key; did you mean 'packages'?"),
        ({"methods": {"topk": {"kk": 3}}}, "methods.topk.kk: unknown key; did you mean 'k'?"),
        (
            {"methods": {"atm": {"masking": {"warmup_step": 3}}}},
            "methods.atm.masking.warmup_step: unknown key; did you mean 'warmup_steps'?",
        ),
        (
            {"evaluation": {"absorption": {"max_word": 5}}},
            "evaluation.absorption.max_word: unknown key; did you mean 'max_words'?",
        ),
        ({"data": {"qwertyuiop": 1}}, "data.qwertyuiop: unknown key; known: batch_tokens, "),
        ({"beside": ["ortsee"]}, "beside.ortsee is no method; did you mean 'ortsae'?"),
        ({"beside": ["ortsae"]}, "beside.ortsae has no entry in methods; add it there"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(tmp_path, changes, says):
    assert refusal(tmp_path, changes).startswith(says)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"methods": {"standard": {"l1_coefficient": -0.1}}}, "methods.standard.l1_coefficient: "),
        ({"methods": {"standard": {"l1_coefficient": math.nan}}}, "methods.standard.l1_coefficient: "),
        ({"methods": {"standard": {"optimizer": {"learning_rate": -1}}}}, "methods.standard.optimizer.learning_rate: "),
        ({"methods": {"standard": {"optimizer": {"weight_decay": -1}}}}, "methods.standard.optimizer.weight_decay: "),
        ({"methods": {"jumprelu": {"l0_coefficient": -1}}}, "methods.jumprelu.l0_coefficient: "),
        ({"methods": {"topk": {"auxk_coefficient": -0.1}}}, "methods.topk.auxk_coefficient: "),
        ({"methods": {"dropout": {"dropout": {"probability": -0.1}}}}, "methods.dropout.dropout.probability: "),
        *(
            ({"methods": {"temporal_sae": {part: {field: value}}}}, f"methods.temporal_sae.{part}.{field}: ")
            for part, field, value in (
                ("temporal", "coefficient", -1),
                ("temporal", "pairing", "adjacent"),
                ("resampling", "threshold", -0.1),
                ("gradient_scaling", "s_min", -1),
            )
        ),
        ({"methods": {"atm": {"masking": {"r": -1}}}}, "methods.atm.masking.r: "),
        ({"training": {"d_sae": 0}}, "training.d_sae: "),
        ({"training": {"steps": "many"}}, "training.steps: "),
        ({"corpus": {"held_out_fraction": 0.7}}, "corpus.held_out_fraction: "),
        ({"model": {"dtype": "int8"}}, "model.dtype: "),
        ({"model": {"layer": -1}}, "model.layer: "),
        ({"model": {"name": ""}}, "model.name: "),
        ({"name": "n" * 51}, "name: "),
        ({"training": {"seeds": [1, 2**64]}}, "training.seeds.1: "),
        ({"training": {"seeds": [-1]}}, "training.seeds.0: "),
        ({"training": {"seeds": [True, 2]}}, "training.seeds.0: "),
        ({"training": {"ablation_seeds": [2**32]}}, "training.ablation_seeds.0: "),
        ({"data": {"stream_seed": -1}}, "data.stream_seed: "),
        ({"sweep": {"seeds": [-7]}}, "sweep.seeds.0: "),
        ({"sweep": {"compare_at": [-1]}}, "sweep.compare_at.0: "),
        ({"ablations": {"atm_grid_seeds": [-7]}}, "ablations.atm_grid_seeds.0: "),
        ({"ablations": {"atm_r": [1, -1]}}, "ablations.atm_r.1: "),
        ({"ablations": {"temporal_coefficients": [-1]}}, "ablations.temporal_coefficients.0: "),
        ({"ablations": {"resampling_thresholds": [1.5]}}, "ablations.resampling_thresholds.0: "),
        ({"evaluation": {"absorption": {"icl_examples": -1}}}, "evaluation.absorption.icl_examples: "),
    ],
)
def test_a_value_out_of_range_is_named_and_shown(tmp_path, changes, says):
    line = refusal(tmp_path, changes)
    assert line.startswith(says) and ", got " in line


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"methods": {"topk": {"k": 99}}}, ["methods.topk", "k = 99 is above d_sae = 32"]),
        ({"methods": {"batchtopk": {"k": 33}}}, ["methods.batchtopk", "k = 33 is above d_sae = 32"]),
        ({"methods": {"jumprelu": {"target_l0": 99}}}, ["methods.jumprelu", "target_l0 = 99", "above d_sae = 32"]),
        ({"methods": {"topk": {"k": None}}}, ["methods.topk.k", "valid integer"]),
        ({"methods": {"atm": {"dropout": {"probability": 0.1}}}}, ["methods.atm", "masking and dropout are both set"]),
        ({"methods": {"topp": {"k": 3}}}, ["methods.topp is no method", "did you mean 'topk'?"]),
        ({"as_written": {"temporal_sea": {}}}, ["as_written.temporal_sea is no method", "'temporal_sae'?"]),
        ({"as_written": {"topk": {"k": 99}}}, ["as_written.topk", "k = 99 is above d_sae = 32"]),
        ({"sweep": {"coefficients": {"atmo": [1, 2]}}}, ["sweep.coefficients.atmo", "'atm'?"]),
        ({"sweep": {"coefficients": {"atm": [0.1]}}}, ["coefficients.atm", "two or more"]),
        ({"sweep": {"coefficients": {"atm": [0.1, -0.1]}}}, ["coefficients.atm", "positive"]),
        ({"sweep": {"coefficients": {"gated": None}}}, ["sweep.coefficients.gated"]),
        ({"sweep": {"levels": [4, 4]}}, ["sweep", "levels", "distinct"]),
        ({"sweep": {"seeds": [2, 7]}}, ["sweep.seeds [2] are among training.seeds"]),
        ({"training": {"seeds": [1, 2, 1]}}, ["training.seeds", "repeated", "[1, 2, 1]"]),
        ({"training": {"ablation_seeds": [3, 3]}}, ["training.ablation_seeds", "repeated"]),
        ({"ablations": {"atm_grid_seeds": [3, 3]}}, ["ablations.atm_grid_seeds", "repeated"]),
        ({"ablations": {"as_written_seeds": [3, 3]}}, ["ablations.as_written_seeds", "repeated"]),
        ({"data": {"window": 7}}, ["data", "batch_tokens 64 is no multiple of window 7", "try 63"]),
        ({"data": {"batch_tokens": 4000}}, ["data", "4000 is above train_tokens 1000"]),
        ({"corpus": {"packages": []}}, ["corpus", "source 'documentation' needs corpus.packages"]),
        ({"corpus": {"source": "files"}}, ["corpus", "needs corpus.files"]),
        ({"corpus": {"source": "hub"}}, ["corpus", "needs corpus.name"]),
    ],
)
def test_values_that_do_not_fit_together(tmp_path, changes, parts):
    line = refusal(tmp_path, changes)
    assert all(part in line for part in parts), line


def test_a_missing_key_is_named_and_a_misspelt_one_as_misspelt(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in content().items() if k != "data"}))
    with pytest.raises(ArtifactError, match=r"^data: Field required$"):
        load_profile(file)
    changed = content()
    changed["training"]["d_sea"] = changed["training"].pop("d_sae")
    file.write_text(yaml.safe_dump(changed))
    with pytest.raises(ArtifactError, match=r"^training\.d_sea: unknown key; did you mean 'd_sae'\?$"):
        load_profile(file)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1", "not valid YAML"),
        ("- a", "expected keys and values, got list"),
        ("", "NoneType"),
        ("extends: smoke\nname: mine\noff: 1\n", r"^False: Keys should be strings, got False$"),  # as YAML reads it
        ("name: !!python/object/apply:os.mkdir ['made']\n", "not valid YAML"),  # a profile runs no code
    ],
)
def test_files_that_are_no_profile(tmp_path, monkeypatch, text, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(ArtifactError, match=says) as caught:
        load_profile(tmp_path / "wrong.yaml")
    assert "\n" not in str(caught.value) and not (tmp_path / "made").exists()


def test_where_a_profile_was_looked_for_is_told(tmp_path, monkeypatch):
    with pytest.raises(ArtifactError, match="no profile 'poket'; did you mean 'pocket'"):
        load_profile("poket")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match=f"^profile: no profile 'mine.yaml' in {tmp_path}; "):
        load_profile("mine.yaml")
    (tmp_path / "mine.yaml").mkdir()
    with pytest.raises(ArtifactError, match=r"^profile: mine\.yaml is a folder; name a YAML file$"):
        load_profile("mine.yaml")


@pytest.mark.parametrize("name", ["corpus", "nbval", "docs", "benchmark", "evaluate", "Corpus"])
def test_a_name_is_no_shared_folder(tmp_path, name):
    assert refusal(tmp_path, {"name": name}) == (
        f"name: '{name}' is a folder that all profiles share; choose another name"
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_a_copy_of_a_packaged_profile_needs_a_name(tmp_path, name):
    text = (PROFILES / f"{name}.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ArtifactError, match=f"^name: '{name}' is a packaged profile; give mine.yaml a name of its own"):
        load_profile(tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_text(text.replace(f"name: {name}\n", "name: mine\n", 1))
    assert load_profile(tmp_path / "mine.yaml").name == "mine"
    assert load_profile(PROFILES / f"{name}.yaml").name == name, "by its path, it is itself"


def test_values_are_laid_over_a_recipe():
    assert merged({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}}) == {"a": {"b": 1, "c": 4}, "d": 3}
    assert merged({"a": {"b": 1}}, {"a": None}) == {"a": None}
    assert merged({"a": None}, {"a": {"b": 1}}) == {"a": {"b": 1}}
    base = {"a": {"b": 1}}
    merged(base, {"a": {"b": 2}})
    assert base == {"a": {"b": 1}}


def test_schedules_shrink_with_the_run():
    full = sae_config(method_recipe("temporal_sae", 64, {}, 1.0))
    short = sae_config(method_recipe("temporal_sae", 64, {"resampling": {"interval": 9}}, 0.2))
    assert full.get("resampling") and short.get("resampling") and short.get("temporal")
    resampling = full.get("resampling")
    assert (resampling.warmup_steps, resampling.warmup_interval, resampling.interval) == (1000, 100, 500)
    assert (short.get("resampling").warmup_steps, short.get("resampling").warmup_interval) == (200, 20)
    assert short.get("resampling").interval == 9, "what a profile says is taken as it is"
    assert (full.optimizer.warmup_steps, short.optimizer.warmup_steps) == (1000, 200)
    assert short.get("temporal").momentum == pytest.approx(0.99**5), "averages keep their share of the run too"
    tiny = sae_config(method_recipe("temporal_sae", 64, {}, 1e-6))
    assert tiny.get("resampling") and tiny.get("resampling").interval == 1, "an interval is never 0"


def test_a_mechanism_that_a_profile_adds_keeps_its_share_of_the_run_too():
    scaled = sae_config(method_recipe("standard", 64, {"masking": {"c": 2.0}}, 0.2)).get("masking")
    assert (scaled.warmup_steps, scaled.c) == (200, 2.0)
    assert scaled.decay == pytest.approx(0.99**5)
    assert scaled == sae_config(method_recipe("atm", 64, {"masking": {"c": 2.0}}, 0.2)).get("masking")
    own = sae_config(method_recipe("standard", 64, {"masking": {"warmup_steps": 7}}, 0.2)).get("masking")
    assert own.warmup_steps == 7, "what a profile says is taken as it is"
    named = sae_config(method_recipe("standard", 64, {"dropout": {"probability": 0.1}}, 0.2)).get("dropout")
    assert (named.warmup_steps, named.probability) == (200, 0.1)


def test_published_recipes():
    """TemporalSAE section 5; ATM's defaults; dictionary_learning's learning rate for TopK."""
    paper = sae_config(method_recipe("temporal_sae", 16384, {}, 1.0))
    assert (paper.get("l1_coefficient"), paper.optimizer.learning_rate, paper.optimizer.clip_norm) == (0.04, 3e-4, 0.1)
    assert paper.optimizer.name == "adamw" and not paper.normalize_inputs
    assert paper.get("temporal") and paper.get("resampling") and paper.get("gradient_scaling")
    temporal, threshold = paper.get("temporal"), paper.get("resampling").threshold
    assert (temporal.coefficient, temporal.momentum, threshold) == (1e-4, 0.99, 0.005)
    scaling = paper.get("gradient_scaling")
    assert (scaling.s_min, scaling.s_max, scaling.epsilon) == (0.1, 10.0, 1e-6)
    atm = sae_config(method_recipe("atm", 16384, {}, 1.0)).get("masking")
    assert atm and (atm.c, atm.r, atm.decay, atm.warmup_steps) == (1.0, 1.0, 0.99, 1000)
    topk = sae_config(method_recipe("topk", 2**14 * 4, {"k": 5}, 1.0))
    assert topk.optimizer.learning_rate == pytest.approx(1e-4) and topk.subtract_b_dec
    jumprelu = sae_config(method_recipe("jumprelu", 64, {"target_l0": 5}, 1.0))
    assert (jumprelu.optimizer.beta1, jumprelu.get("bandwidth"), jumprelu.get("initial_threshold")) == (0.0, 1e-3, 1e-3)


HUB_CORPUS = {"source": "hub", "name": "monology/pile-uncopyrighted", "packages": []}


def test_a_revision_left_out_is_the_pinned_one(tmp_path):
    profile = load(tmp_path, {"model": {"name": "openai-community/gpt2"}, "corpus": HUB_CORPUS})
    assert profile.model.revision == "607a30d783dfa663caf39e06633721c8d4cfcd7e"
    assert profile.corpus.revision == "3be90335b66f24456a5d6659d9c8d208c0357119"
    given = {"model": {"name": "openai-community/gpt2", "revision": "v2"}, "corpus": HUB_CORPUS | {"revision": "v3"}}
    assert (load(tmp_path, given).model.revision, load(tmp_path, given).corpus.revision) == ("v2", "v3")
    own = load(tmp_path, {"model": {"name": "someone/model"}})
    assert own.model.revision is None and own.corpus.revision is None


def test_a_corpus_that_is_not_pinned_needs_a_revision(tmp_path):
    line = refusal(tmp_path, {"corpus": {"source": "hub", "name": "someone/text"}})
    assert line == (
        "corpus: someone/text is not pinned in sae_lib/data/hub.yaml, so it needs a revision: a commit from "
        "https://huggingface.co/datasets/someone/text/commits/main, or main to read whatever is newest"
    )
    newest = load(tmp_path, {"corpus": {"source": "hub", "name": "someone/text", "revision": "main"}})
    assert newest.corpus.revision == "main"


def extending(folder, text: str, name: str = "mine.yaml"):
    (folder / name).write_text(text)
    return folder / name


def test_a_profile_says_only_what_differs_from_the_one_it_extends(tmp_path):
    file = extending(
        tmp_path,
        "extends: pocket\nname: mine\ntraining: {d_sae: 512}\nas_written: {topk: null}\n"
        "methods: {gated: null}\nsweep: {coefficients: {gated: null}}\n",
    )
    mine, pocket = load_profile(file), load_profile("pocket")
    assert (mine.name, mine.training.d_sae, mine.training.steps) == ("mine", 512, pocket.training.steps)
    assert set(mine.as_written) == set(pocket.as_written) - {"topk"}
    assert mine.corpus == pocket.corpus and set(mine.main_methods) == set(pocket.main_methods) - {"gated"}


def test_a_method_of_the_field_is_trained_where_a_profile_names_it(tmp_path):
    text = "extends: smoke\nname: mine\nmethods: {ortsae: {k: 8, orthogonality: {coefficient: 0.5}}}\n"
    mine, smoke = load_profile(extending(tmp_path, text)), load_profile("smoke")
    assert mine.main_methods == (*smoke.main_methods, "ortsae")
    assert mine.sae_config("ortsae").get("orthogonality").coefficient == 0.5
    assert in_order(["topk", "soft_frozen", "ortsae"]) == ["topk", "ortsae", "soft_frozen"]
    assert method_name("ortsae") == "OrtSAE"


def test_a_profile_extends_a_file_beside_it_which_may_extend_another(tmp_path):
    extending(tmp_path, "extends: smoke\nname: first\ntraining: {seeds: [1, 2]}\n", "first.yaml")
    second = load_profile(extending(tmp_path, "extends: first.yaml\nname: second\n", "second.yaml"))
    assert second.training.seeds == (1, 2) and second.model == load_profile("smoke").model


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("extends: mine.yaml\nname: mine\n", "extends: a circle of profiles"),
        ("extends: [pocket]\nname: mine\n", r"extends: expected a name or path, got \['pocket'\]"),
        ("extends: pocke\nname: mine\n", "no profile 'pocke'.*did you mean 'pocket'"),
        ("extends: pocket\n", "'pocket' is a packaged profile"),
        ("extends: pocket\nname: mine\ntraining: {d_sea: 3}\n", "training.d_sea: unknown key; did you mean 'd_sae'"),
    ],
)
def test_what_cannot_be_extended_is_told_in_one_line(tmp_path, text, told):
    with pytest.raises(ArtifactError, match=told) as caught:
        load_profile(extending(tmp_path, text))
    assert "\n" not in str(caught.value)
