"""Wrong inputs of `evaluate`, each told in one line."""

import errno
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from sae_lib.__main__ import main
from sae_lib.util.paths import ROOT
from tests.share.test_evaluate import WIDTH, tiny_texts, write_sae
from tests.tiny_models import save_tiny_model


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    save_tiny_model(tmp_path / "tiny")
    write_sae(tmp_path / "sae", WIDTH)
    (tmp_path / "text.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in tiny_texts()))
    small = ["--layer", "1", "--metrics", "core", "--context-length", "16", "--contexts", "4", "--device", "cpu"]
    return ["evaluate", str(tmp_path / "sae"), "--model", str(tmp_path / "tiny"), *small, "--files",
            str(tmp_path / "text.jsonl")]  # fmt: skip


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 1
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and not said.out, said
    return lines[0]


def test_lists_in_lists(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sae" / "cfg.json").write_text("[" * 100_000)
    assert "is not valid JSON" in refused(arguments, capsys)


def test_weights_beyond_float32(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sae" / "sae_weights.safetensors"
    save_file(load_file(file) | {"W_enc": load_file(file)["W_enc"] * 1e30}, file)
    assert "mse" in refused(arguments, capsys)


def test_a_warning_is_one_line(arguments: list[str]) -> None:
    """Of a tokenizer with more entries than the model has embeddings."""
    folder = Path(arguments[arguments.index("--model") + 1])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["more", "words"])
    tokenizer.save_pretrained(folder)
    code = f"import sys; from sae_lib.__main__ import main; sys.exit(main({arguments!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    told = [line for line in done.stderr.splitlines() if "no embedding" in line]
    assert len(told) == 1 and told[0].startswith("note: ") and ".py" not in done.stderr


def test_the_packaged_model_is_not_trained_for_a_place_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    told = refused(["pocket-lm", "--output", str(tmp_path / "file")], capsys)
    assert told.startswith("error: output: ") and "is no folder" in told


def test_places_that_cannot_be(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "name too long" in refused([*arguments, "--json", str(tmp_path / ("j" * 300))], capsys)
    for place in (str(tmp_path / "text.jsonl"), os.devnull, f"{os.devnull}/below"):
        assert f"cache: '{place}' cannot be a folder" in refused([*arguments, "--cache", place], capsys)
        assert f"out: '{place}' cannot be a folder" in refused(["export", "run", "--out", place], capsys)
    assert f"--json: '{os.devnull}' cannot be a folder" in refused([*arguments, "--json", f"{os.devnull}/x"], capsys)


def test_places_without_permission(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any work for them, with advice that helps: SAE_LIB_OUTPUT has no say over what an option names."""

    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr("sae_lib.share.evaluate.load_with_origin", None)
    theirs = tmp_path / "theirs"
    told = f"cannot write into {theirs} (Permission denied); name a folder of yours"
    for field, options in (
        ("cache", [*arguments, "--cache", str(theirs)]),
        ("--json", [*arguments, "--json", str(theirs / "x.json")]),
        ("--output", ["pocket-lm", "--output", str(theirs)]),
    ):
        assert refused(options, capsys) == f"error: {field}: {told}"
    assert refused(arguments, capsys).endswith("(Permission denied); set SAE_LIB_OUTPUT to a folder of yours")


@pytest.mark.parametrize(
    "options",
    [
        ["evaluate", "", "--model", "pocket"],
        ["evaluate", "sae", "--model", ""],
        ["evaluate", "sae", "--model", "pocket", "--files", "text.jsonl", ""],
        ["evaluate", "sae", "--model", "pocket", "--cache", ""],
        ["evaluate", "sae", "--model", "pocket", "--json", ""],
        ["export", "", "--out", "out"],
        ["export", "run", "--out", ""],
        ["plan", "--profile", ""],
    ],
)
def test_what_an_unset_variable_leaves_behind(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    field = options[options.index("") - 1].lstrip("-")
    field = {"evaluate": "folder", "export": "run", "text.jsonl": "files"}.get(field, field)
    assert refused(options, capsys) == f"error: {field}: nothing is given (''); give a value, or leave it out"


def test_a_configuration_that_transformers_refuses(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tiny" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": "two"}))
    assert "transformers does not know the model" in refused(arguments, capsys)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_attention_heads": 3}, "not a multiple of the number of attention heads"),
        ({"model_type": "t5"}, "config.json of .* makes no language model"),
        ({"vocab_size": 10}, "has shape .* where config.json asks for .*; take the configuration that belongs"),
        ({"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}, "the weights of .* lack"),
        ({"num_hidden_layers": 9}, "transformers does not know the model in .*:.*layer"),
    ],
)
def test_a_configuration_that_does_not_belong_to_the_weights(
    tmp_path: Path, arguments: list[str], change: dict[str, object], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tiny" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    told = refused(arguments, capsys)
    assert re.search(says, told) and len(told) < 400


@pytest.mark.parametrize("content", ["[]", "7", "[" * 100_000, "\xff"])
def test_a_configuration_that_is_no_mapping(
    tmp_path: Path, arguments: list[str], content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the SAE's files name a model, which is looked for in it."""
    file = tmp_path / "sae" / "cfg.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"metadata": {"model_name": "tiny", "hook_name": "blocks.1.hook_resid_post"}}))
    (tmp_path / "tiny" / "config.json").write_text(content, encoding="latin-1")
    assert "transformers does not know the model" in refused(arguments, capsys)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": {"a": "model-00009-of-00002.safetensors"}}'])
def test_an_index_of_weights_that_is_none(
    tmp_path: Path, arguments: list[str], index: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny" / "model.safetensors").rename(tmp_path / "tiny" / "model-00001-of-00002.safetensors")
    (tmp_path / "tiny" / "model.safetensors.index.json").write_text(index)
    assert "cannot be read" in refused(arguments, capsys)


@pytest.mark.parametrize("threads", ["0", "-2", "two", ""])
def test_a_number_of_threads_that_is_none(
    threads: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NUMBA_NUM_THREADS", threads)
    assert f"NUMBA_NUM_THREADS: '{threads}' is no number of threads" in refused(arguments, capsys)


def test_an_interpreter_without_docstrings(arguments: list[str]) -> None:
    code = f"import sys; from sae_lib.__main__ import main; sys.exit(main({arguments!r}))"
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1 and done.stderr.startswith("error: PYTHONOPTIMIZE: 2")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("output", "told"), [("/dev/full", "error: disk full while printing"), ("pipe", "")])
def test_output_that_nobody_takes(output: str, told: str) -> None:
    """As in `| head`, which closes its end."""
    if output == "pipe":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open(output, os.O_WRONLY)
    command = [sys.executable, "-m", "sae_lib", "environment", "check"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    os.close(writer)
    assert done.returncode == 1 and done.stderr.startswith(told) and done.stderr.count("\n") == bool(told), done.stderr


def test_a_broken_pipe_of_another_kind_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "a worker is gone")

    monkeypatch.setattr("sae_lib.profiles.profile.load_profile", broken)
    with pytest.raises(BrokenPipeError, match="a worker is gone"):
        main(["plan", "--profile", "smoke"])


@pytest.mark.parametrize("option", ["folder", "--model", "--files", "--profile"])
def test_names_that_the_system_does_not_take(
    arguments: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it is with a folder that may not be looked into, which root cannot try."""
    long = "x" * 300 + (".txt" if option == "--files" else ".yaml" if option == "--profile" else "")
    at = 1 if option == "folder" else arguments.index(option) + 1 if option in arguments else 0
    asked = ["plan", option, long] if not at else [*arguments[:at], long, *arguments[at + 1 :]]
    told = refused(asked, capsys)
    assert told.endswith("…: File name too long; check this path and its permissions") and len(told) < 400


def test_what_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = io.open

    def refuse(file: object, *more: Any, **named: Any) -> Any:
        if str(file).startswith(str(theirs)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return real(file, *more, **named)  # type: ignore[call-overload]

    profile = tmp_path / "mine.yaml"
    profile.write_text("name: mine\nextends: smoke\n")
    monkeypatch.setattr(io, "open", refuse)
    for theirs, options in (
        (tmp_path / "sae" / "sae_weights.safetensors", arguments),
        (tmp_path / "tiny" / "model.safetensors", arguments),
        (profile, ["plan", "--profile", str(profile)]),
    ):
        told = refused(options, capsys)
        assert str(theirs) in told and "Permission denied" in told
        assert not re.search("damaged|fetch|not valid YAML|no such", told)
