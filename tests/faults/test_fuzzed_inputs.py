"""Text files and configurations of SAEs, altered at random: read, or refused in one line; never a number for an SAE
that is broken."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from sae_lib.share.dictionary_learning import KINDS
from sae_lib.share.evaluate import chosen_texts
from sae_lib.share.load import load_with_origin
from sae_lib.share.origin import origin_faults
from sae_lib.util.errors import ArtifactError
from tests.faults.test_fuzzed_profiles import FUZZ, TEXT

SMALL = type(FUZZ)(FUZZ, max_examples=60)
WIDTH, LATENTS = 4, 8
JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), TEXT, st.sampled_from([0, -1, 3, 10**30, 0.5, float("nan"), float("inf"), 1e300]),
        st.sampled_from(["topk", "gated", "layer_norm", "blocks.-1.hook_resid_post", "blocks.9.hook_in", "3.x"]),
        st.just("\ud800"),
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=3,
)  # fmt: skip
FILES: dict[str, tuple[str, dict[str, Any], dict[str, list[int]]]] = {
    "SAELens": (
        "sae_weights.safetensors",
        {
            "architecture": "standard", "d_in": WIDTH, "d_sae": LATENTS, "activation_fn": "topk", "hook_point": "x",
            "activation_fn_kwargs": {"k": 2}, "normalize_activations": "none", "apply_b_dec_to_input": True,
            "reshape_activations": "none", "model_from_pretrained_kwargs": {}, "sae_lens_version": "5.1.0",
            "rescale_acts_by_decoder_norm": True, "prepend_bos": False,
            "metadata": {"model_name": "tiny", "hook_name": "blocks.1.hook_resid_post"},
        },
        {"W_enc": [WIDTH, LATENTS], "W_dec": [LATENTS, WIDTH], "b_enc": [LATENTS], "b_dec": [WIDTH]},
    ),
    "sparsify": (
        "sae.safetensors",
        {"k": 2, "num_latents": LATENTS, "expansion_factor": 2, "d_in": WIDTH, "activation": "topk",
         "normalize_decoder": True, "multi_topk": False, "skip_connection": False, "signed": False, "transcode": False},
        {"encoder.weight": [LATENTS, WIDTH], "encoder.bias": [LATENTS], "W_dec": [LATENTS, WIDTH], "b_dec": [WIDTH]},
    ),
}  # fmt: skip


def one_line(read: Callable[[], Any]) -> Any:
    """What is read, or None where one line refuses it; any other exception passes."""
    try:
        return read()
    except ArtifactError as error:
        assert str(error).splitlines() == [str(error)], repr(str(error))
        return None


@pytest.mark.parametrize("library", FILES)
@SMALL
@given(data=st.data())
def test_a_configuration_of_another_library(tmp_path: Path, library: str, data: st.DataObject) -> None:
    weights, config, shapes = FILES[library]
    generator = torch.Generator().manual_seed(0)
    save_file({name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}, tmp_path / weights)
    changed = json.loads(json.dumps(config))
    for _ in range(data.draw(st.integers(1, 2))):
        key = data.draw(st.sampled_from([*config, "k", "metadata", "hook_name", "model_name", "hook_head_index"]))
        if data.draw(st.booleans()):
            changed[key] = data.draw(JSON)
        else:
            changed.pop(key, None)
    text = json.dumps(changed, ensure_ascii=data.draw(st.booleans()))
    cut = data.draw(st.sampled_from([None, None, None, 0, 7, len(text) - 1]))
    (tmp_path / "cfg.json").write_bytes(text[:cut].encode("utf8", "surrogatepass"))
    loaded = one_line(lambda: load_with_origin(tmp_path))
    if loaded is not None:
        sae, origin = loaded
        x = torch.randn(5, WIDTH, generator=generator)
        assert sae(x).isfinite().all() and sae.encode(x).shape == (5, LATENTS)
        for fault, fix in origin_faults(origin, "tiny", 1):
            assert "\n" not in fault + fix


VALUES = st.sampled_from([0.0, -1.0, float("nan"), float("inf"), 3e38])


def altered(content: bytes, data: st.DataObject) -> bytes:
    """A file as it is, cut, or with bytes changed."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(0, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    return bytes(changed[: data.draw(st.sampled_from([None, None, None, 0, 3, len(content) // 2, -1]))])


def assert_read_or_refused(folder: Path) -> None:
    """Where an SAE is read, it is whole and gives numbers."""
    loaded = one_line(lambda: load_with_origin(folder))
    if loaded is not None:
        sae, origin = loaded
        assert all(tensor.isfinite().all() for tensor in sae.state_dict().values())
        assert sae.encode(torch.ones(5, sae.d_in)).isfinite().all()
        for fault, fix in origin_faults(origin, "tiny", 1):
            assert "\n" not in fault + fix


SHAPES = {
    "W_enc": [WIDTH, LATENTS],
    "W_dec": [LATENTS, WIDTH],
    "b_enc": [LATENTS],
    "b_dec": [WIDTH],
    "threshold": [LATENTS],
}


@SMALL
@given(data=st.data(), compressed=st.booleans(),
       name=st.sampled_from(["layer_20", "layer_", "layer_-1", f"layer_{10**30}", "embedding", "[a]"]),
       site=st.sampled_from(["gemma-scope-2b-pt-res", "gemma-scope-2b-it-att", "gemma-scope-9b-pt", "x"]))  # fmt: skip
def test_a_file_of_gemma_scope(tmp_path: Path, data: st.DataObject, compressed: bool, name: str, site: str) -> None:
    arrays = {key: np.full(shape, 0.5, np.float32) for key, shape in SHAPES.items()}
    for key in data.draw(st.lists(st.sampled_from([*SHAPES, "w_enc", "W_skip"]), max_size=2)):
        shape = data.draw(st.lists(st.sampled_from([0, 1, WIDTH, LATENTS]), max_size=3))
        kind = data.draw(st.sampled_from(["float16", "float64", "int8", "complex64", "U3", ">f4", "bool"]))
        arrays[key] = np.full(shape or SHAPES.get(key, []), data.draw(VALUES)).astype(np.float32)
        with np.errstate(all="ignore"):
            arrays[key] = arrays[key].astype(kind)
    file = tmp_path / site / name / "params.npz"
    file.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)  # type: ignore[arg-type]
    file.write_bytes(altered(buffer.getvalue(), data))
    assert_read_or_refused(file.parent)


@SMALL
@given(data=st.data())
def test_a_folder_of_dictionary_learning(tmp_path: Path, data: st.DataObject) -> None:
    state = {"encoder.weight": torch.ones(LATENTS, WIDTH), "encoder.bias": torch.ones(LATENTS),
             "decoder.weight": torch.ones(WIDTH, LATENTS), "b_dec": torch.ones(WIDTH), "k": torch.tensor(2),
             "threshold": torch.tensor(0.1)}  # fmt: skip
    for key in data.draw(st.lists(st.sampled_from(list(state)), max_size=2)):
        state[key] = torch.full(data.draw(st.sampled_from([[], [2], [WIDTH, WIDTH], [0]])), data.draw(VALUES))
    trainer: dict[str, Any] = {"dict_class": "AutoEncoderTopK", "k": 2, "layer": 1, "lm_name": "tiny",
                               "submodule_name": "resid_post_layer_1"}  # fmt: skip
    for key in data.draw(st.lists(st.sampled_from([*trainer, "activation_dim"]), max_size=2)):
        trainer[key] = data.draw(st.one_of(JSON, st.sampled_from(sorted(KINDS))))
    config = data.draw(st.one_of(st.just({"trainer": trainer}), st.just({"trainer": trainer}), JSON))
    (tmp_path / "config.json").write_bytes(json.dumps(config).encode("utf8", "surrogatepass"))
    buffer = io.BytesIO()
    torch.save(state, buffer)
    (tmp_path / "ae.pt").write_bytes(altered(buffer.getvalue(), data))
    assert_read_or_refused(tmp_path)


ROWS = st.lists(
    st.one_of(
        st.dictionaries(st.sampled_from(["text", "label", "Text"]), JSON, max_size=2), JSON, st.just({"text": "a b c"})
    ),
    max_size=5,
)


@SMALL
@given(rows=ROWS, joint=st.sampled_from(["\n", "\r\n", "\n\n", ",", "\u2028"]),
       cut=st.sampled_from([None, None, -1, 3]),
       encoding=st.sampled_from(["utf8", "utf8", "utf-8-sig", "utf-16", "latin-1"]),
       field=st.sampled_from(["text", "body"]),
       ending=st.sampled_from(["jsonl", "txt", "json", "parquet", "jsonl.gz"]))  # fmt: skip
def test_a_file_of_text(
    tmp_path: Path, rows: list[Any], joint: str, cut: int | None, encoding: str, field: str, ending: str
) -> None:
    text = joint.join(json.dumps(row) for row in rows)
    (tmp_path / f"text.{ending}").write_bytes(text.encode(encoding, "replace")[:cut])
    found = one_line(lambda: [text for _, text in chosen_texts(None, [tmp_path / f"text.{ending}"], field)])
    assert found is None or all(text is None or isinstance(text, str) for text in found)


@SMALL
@given(content=st.binary(max_size=200), ending=st.sampled_from(["jsonl", "txt", "parquet"]))
def test_a_file_of_anything(tmp_path: Path, content: bytes, ending: str) -> None:
    (tmp_path / f"text.{ending}").write_bytes(content)
    found = one_line(lambda: [text for _, text in chosen_texts(None, [tmp_path / f"text.{ending}"], "text")])
    assert found is None or all(text is None or isinstance(text, str) for text in found)
