"""The benchmarks run at the smallest size and leave whole results; how long anything takes is not looked at."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gemma, harvest, random_model, scaling, step_time, summary
from benchmarks.floor import floor_seconds, product_flop, products
from benchmarks.harvest_peers import PEERS, flop_per_token
from benchmarks.measure import exponent, hardware, hardware_line, interleaved, ratio, spread
from benchmarks.output import results_file, table
from benchmarks.random_model import (
    GEMMA_2_2B,
    gemma_sizes,
    random_store,
    random_tokens,
    save_random_gemma,
    write_documents,
)  # fmt: skip
from benchmarks.steppers import PEER_METHODS, Ours, Rows, peers_installed
from sae_lib.data.config import ModelConfig
from sae_lib.data.language_model import LanguageModel
from sae_lib.mechanisms import methods
from sae_lib.util.files import read_json
from sae_lib.util.paths import OUTPUT_VARIABLE

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 8192}  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    return Rows(random_store(tmp_path_factory.mktemp("store"), 16, 512), 128, 32, "cpu", ready=2)


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = save_random_gemma(tmp_path_factory.mktemp("lm") / "model", SIZES, dtype="float32")
    return LanguageModel.load(ModelConfig(name=str(folder), layer=0, dtype="float32", device="cpu"), whole=True)


def test_the_cases_take_turns_forwards_and_backwards() -> None:
    calls: list[str] = []
    found = interleaved({name: partial(calls.append, name) for name in "abc"}, 2, block_seconds=0.0)
    assert "".join(calls) == "aabbcc" + "abc" + "cba"  # untimed and how long it takes, then two rounds
    assert {name: len(values) for name, values in found.items()} == {"a": 2, "b": 2, "c": 2}


def test_a_ratio_is_that_of_one_round() -> None:
    # The second round is ten times slower for both: the ratio does not see it.
    assert ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == {"median": 2.0, "low": 2.0, "high": 2.0, "repeats": 3}
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == {"median": 3.0, "low": 2.0, "high": 4.0, "repeats": 5}


def test_the_exponent_of_a_power_law_is_found_with_its_interval() -> None:
    sizes = [1.0, 2.0, 4.0, 8.0]
    found = exponent(sizes, [[3.0 * size**1.5 * noise for noise in (0.9, 1.0, 1.1)] for size in sizes])
    assert found["exponent"] == pytest.approx(1.5, abs=1e-6)
    assert found["low"] < 1.5 < found["high"] < 1.7


def test_the_floor_counts_five_products_and_the_optimisers_bytes() -> None:
    # 2 FLOP x 2,048 x 2,304 x 16,384 = 154.6 GFLOP a product.
    assert product_flop(2304, 16384, 2048) == pytest.approx(5 * 154.6e9, rel=1e-3)
    assert floor_seconds(2.0, 3.0) == pytest.approx(2.0 + 3.0 * 28 / 12)
    products(4, 8, 16, torch.float32, "cpu")()


def test_flop_per_token_counts_every_weight_of_the_blocks_twice(lm: LanguageModel) -> None:
    # q 16 x 16, k and v 8 x 16, o 16 x 16, three of 24 x 16; attention: scores and values over half of 128 positions.
    weights = 2 * 16 * 16 + 2 * 8 * 16 + 3 * 24 * 16
    assert flop_per_token(lm, 128) == 2 * weights + 2 * (2 * 8) * 128


def test_the_hardware_is_told_in_one_line() -> None:
    found = hardware()
    line = hardware_line(found)
    assert found["processor"] and found["versions"]["torch"] == torch.__version__
    assert ("no GPU" in line) == (not torch.cuda.is_available())


def test_a_table_stands_numbers_right() -> None:
    assert table(["m", "ms"], [["ab", "9"], ["c", "10.5"]]).splitlines() == [
        "| m  |   ms |", "|:---|-----:|", "| ab |    9 |", "| c  | 10.5 |"
    ]  # fmt: skip


def test_random_words_make_documents_of_words_only(tmp_path: Path, lm: LanguageModel) -> None:
    file = write_documents(tmp_path / "text.jsonl", 900, lm.tokenizer)
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3 and all(len(line.split()) > 400 for line in lines)
    assert write_documents(tmp_path / "text.jsonl", 5, lm.tokenizer).read_text(encoding="utf-8").count("\n") == 3


def test_random_tokens_open_with_bos_and_hold_no_other_special_token(lm: LanguageModel) -> None:
    tokens = random_tokens(3, 16, lm)
    assert (tokens[:, 0] == lm.bos_token_id).all()
    assert not set(tokens[:, 1:].flatten().tolist()) & lm.special_ids


@pytest.mark.parametrize("method", methods("main", "as written"))
def test_our_stepper_trains_on_and_warms_up(rows: Rows, method: str) -> None:
    stepper = Ours(rows, method, 32, 4, 6, "float32")
    before = stepper.trainer.sae.W_dec.detach().clone()
    stepper.warm(3)
    stepper.step()
    assert stepper.trainer.index == 4  # the small batches' steps are taken over
    assert not torch.equal(before, stepper.trainer.sae.W_dec)
    assert 0 <= stepper.l0() <= 32


@pytest.mark.skipif(len(peers_installed()) < 2, reason="the peers are in the environment of the oracles")
def test_peers_step_and_stand_beside_ours(tmp_path: Path) -> None:
    run_step_time(tmp_path, [*step_time.FAMILIES])
    shape = read_json(results_file(tmp_path, "step_time"))["shapes"][0]
    compared = {(row["peer"], row["method"]) for row in shape["peers"]}
    assert compared == {(peer, method) for peer in ("dictionary_learning", "sae_lens") for method in PEER_METHODS}


@pytest.mark.skipif(len(peers_installed()) < 2, reason="the peers are in the environment of the oracles")
def test_peers_harvest(tmp_path: Path) -> None:
    harvest.main(["--contexts", "64", "--repeats", "1", "--models", "packaged", "--output", str(tmp_path)])
    model = read_json(results_file(tmp_path, "harvest"))["models"][0]
    assert not model["skipped"] and {*PEERS} < {row["library"] for row in model["rows"]}


def run_step_time(folder: Path, families: list[str]) -> None:
    step_time.main(
        ["--shapes", "16x32", "--batch", "128", "--warm", "4", "--repeats", "1", "--block", "0",
         "--precisions", "float32", "bfloat16", "--output", str(folder), "--families", *families]
    )  # fmt: skip


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for each in value.values() for n in numbers(each)]
    if isinstance(value, list):
        return [n for each in value for n in numbers(each)]
    return [value] if isinstance(value, float) else []


def test_every_benchmark_leaves_a_whole_result_a_figure_and_its_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OUTPUT_VARIABLE, str(tmp_path / "build"))  # the benchmarks set it, so it is put back after
    to = ["--output", str(tmp_path)]
    monkeypatch.setattr(harvest, "peers_installed", lambda: ["transformers"])
    run_step_time(tmp_path, ["l1", "topk"])
    harvest.main(["--contexts", "4", "--repeats", "1", "--models", "packaged", *to])
    scaling.main(
        ["--tokens", "256", "512", "--widths", "32", "64", "--saes", "1", "2", "--d-sae", "32", "--batch", "128",
         "--repeats", "2", "--block", "0", *to]
    )  # fmt: skip
    harvested = read_json(results_file(tmp_path, "harvest"))["models"][0]
    assert harvested["skipped"] == {"SAELens": "not installed", "dictionary_learning": "not installed"}
    for name in ("step_time", "harvest", "scaling"):
        result = read_json(results_file(tmp_path, name))
        assert result["hardware"]["cores"] >= 1
        assert all(math.isfinite(number) for number in numbers(result))
        assert (tmp_path / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    mechanisms = read_json(results_file(tmp_path, "step_time"))["shapes"][0]["mechanisms"]
    assert {row["method"] for row in mechanisms} == {"temporal_sae", "atm", "dropout"}
    summary.main(to)
    page = (tmp_path / "results" / "summary.md").read_text(encoding="utf-8")
    assert "TemporalSAE" in page and "Not measured here: `python -m benchmarks.gemma`" in page


def test_the_scaled_run_of_gemma_goes_from_text_to_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OUTPUT_VARIABLE, str(tmp_path / "build"))
    monkeypatch.setattr(random_model, "GEMMA_2_2B", GEMMA_2_2B | {"num_hidden_layers": 14})
    monkeypatch.setattr(gemma, "FEWER_WORDS", 60)
    asked = ["--scaled", "--divide", "32", "--fewer", "2000", "--methods", "topk", "atm", "--output", str(tmp_path)]
    gemma.main(asked)
    result = read_json(results_file(tmp_path, "gemma_scaled"))
    assert result["setting"]["layer"] == 12 and result["setting"]["d_in"] == 72
    assert [sae["method"] for sae in result["saes"]] == ["topk", "atm"]
    assert all(math.isfinite(number) for number in numbers(result))


def test_a_narrow_gemma_keeps_depth_and_heads() -> None:
    sizes = gemma_sizes(144)
    assert (sizes["hidden_size"], sizes["intermediate_size"], sizes["head_dim"]) == (144, 576, 16)
    assert (sizes["num_hidden_layers"], sizes["num_attention_heads"]) == (26, 8)
    assert gemma_sizes(2304) == GEMMA_2_2B


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_the_full_size_asks_for_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gemma.main([])
    assert "take --scaled" in capsys.readouterr().err
