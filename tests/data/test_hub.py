"""What is pinned on the hub, and what is told when the hub cannot be read.

The hub is a transport that answers as the real one does, beneath huggingface_hub and datasets: their own code makes the
errors that are explained.
"""

import errno
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import httpx2
import huggingface_hub
import pytest
import yaml

from sae_lib.data import hub
from sae_lib.data.config import ModelConfig
from sae_lib.data.model_loading import model_folder
from sae_lib.metrics.probing.config import HUB_REVISIONS, ProbingConfig
from sae_lib.metrics.probing.datasets import hub_texts
from sae_lib.profiles.profile import PROFILES, load_profile
from sae_lib.util.errors import ArtifactError

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA = "a" * 40
Handler = Callable[[httpx2.Request], httpx2.Response]


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a handler of HTTP requests in the place of the network; returns the list of requests it has seen."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    asked: list[httpx2.Request] = []

    def install(handler: Handler) -> list[httpx2.Request]:
        def remember(request: httpx2.Request) -> httpx2.Response:
            asked.append(request)
            return handler(request)

        hooks = {"request": [huggingface_hub.utils._http.hf_request_event_hook]}  # it refuses when offline
        transport = httpx2.MockTransport(remember)
        huggingface_hub.set_client_factory(lambda: httpx2.Client(transport=transport, event_hooks=hooks))
        return asked

    yield install
    huggingface_hub.set_client_factory(huggingface_hub.utils._http.default_client_factory)


def refuse(status: int, code: str | None = None) -> Handler:
    """A hub that answers every request with this status and error code."""
    headers = {"X-Error-Code": code} if code else {}
    return lambda request: httpx2.Response(status, headers=headers, request=request)


def unplugged(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectError("no route to host", request=request)


def folder_of(name: str, revision: str | None = SHA, weights: bool = True) -> Path:
    """Of a model without a pin, whatever the file of pins says."""
    return model_folder(ModelConfig.model_construct(name=name, revision=revision, layer=0), weights=weights)


def model_refusal(name: str, revision: str | None = SHA) -> str:
    with pytest.raises(ArtifactError) as caught:
        folder_of(name, revision)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def dataset_refusal(name: str = "someone/text", revision: str | None = SHA) -> str:
    with pytest.raises(Exception) as caught:
        datasets.load_dataset(name, revision=revision, split="train", streaming=True)
    told = hub.explain(caught.value, name, revision, hub.CORPUS)
    assert told is not None and "\n" not in told, repr(caught.value)
    return told


# -- pins


def test_every_revision_is_a_whole_commit_or_said_to_be_missing() -> None:
    content = yaml.safe_load(hub.PINS.read_text())
    for kind, read in (("models", hub.MODELS), ("datasets", hub.DATASETS)):
        assert content[kind]
        for name, entry in content[kind].items():
            assert name.count("/") == 1 and entry["licence"] and isinstance(entry["gated"], bool)
            assert entry["revision"] is None or COMMIT.fullmatch(entry["revision"]), name
            assert read[name] == hub.Pin(**entry)


def test_models_are_pinned_and_say_their_width() -> None:
    widths = {"google/gemma-2-2b": 2304, "openai-community/gpt2": 768, "EleutherAI/pythia-70m-deduped": 512}
    pins = {name: hub.MODELS[name] for name in widths}
    found = {name: pin.config for name, pin in pins.items() if pin.revision}
    assert {name: config.get("hidden_size") or config["n_embd"] for name, config in found.items()} == widths
    assert [name for name, pin in pins.items() if pin.gated] == ["google/gemma-2-2b"]


@pytest.mark.parametrize("name", [path.stem for path in PROFILES.glob("*.yaml")])
def test_a_shipped_profile_reads_the_pinned_commits(name: str) -> None:
    profile = load_profile(name)
    if profile.model.name != "pocket" and profile.model.wheel is None:
        assert profile.model.revision == hub.MODELS[profile.model.name].revision is not None
    if profile.corpus.source == "hub":
        assert profile.corpus.revision == hub.DATASETS[str(profile.corpus.name)].revision is not None


def test_a_revision_that_is_given_goes_before_the_pinned_one() -> None:
    assert hub.MODEL.read_revision("openai-community/gpt2", "v2") == "v2"
    assert hub.MODEL.read_revision("someone/else") is None
    assert hub.CORPUS.read_revision("monology/pile-uncopyrighted", "v2") == "v2"


def test_probing_reads_the_pinned_commits() -> None:
    assert {name: hub.PROBING.read_revision(name) for name in HUB_REVISIONS} == HUB_REVISIONS
    missing = {name for name, revision in HUB_REVISIONS.items() if revision is None}
    assert missing == {"canrager/amazon_reviews_mcauley_1and5", "codeparrot/github-code"}


def test_pins_are_no_part_of_a_content_key() -> None:
    """A pin is in the keys as the revision it stands for; a new entry must not make results stale."""
    assert "hub.yaml" not in re.findall(r'"([^"\n]*)"', Path(hub.__file__).read_text())


# -- models


def test_a_gated_model_without_a_token(answers: Any) -> None:
    answers(refuse(401, "GatedRepo"))
    assert model_refusal("google/gemma-2-2b") == (
        "model.name: google/gemma-2-2b is gated: accept its terms at https://huggingface.co/google/gemma-2-2b, "
        "then run `hf auth login` or set HF_TOKEN"
    )


def test_a_gated_model_with_a_token_that_may_not_read_it(answers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_other")
    answers(refuse(403, "GatedRepo"))
    told = model_refusal("someone/gated")
    assert "someone/gated is gated" in told and "use a token of the account that accepted them" in told
    answers(refuse(403))  # what a token without access to gated repositories is told
    told = model_refusal("google/gemma-2-2b")
    assert "google/gemma-2-2b is gated" in told and "with access to gated repositories" in told


def test_a_revision_that_does_not_exist_is_named_with_its_place(answers: Any) -> None:
    answers(refuse(404, "RevisionNotFound"))
    assert model_refusal("openai-community/gpt2", "v9") == (
        "model.revision: openai-community/gpt2 has no revision v9 on the hub; "
        "https://huggingface.co/openai-community/gpt2/commits/main lists them"
    )
    pinned = hub.MODEL.read_revision("openai-community/gpt2")
    assert f"no revision {pinned} (pinned in sae_lib/data/hub.yaml) on the hub" in model_refusal(
        "openai-community/gpt2", pinned
    )


@pytest.mark.parametrize("status", [401, 404])
def test_a_model_that_is_not_there_or_private(answers: Any, status: int) -> None:
    answers(refuse(status, "RepoNotFound"))
    told = model_refusal("someone/tinny")
    assert told.startswith("model.name: someone/tinny is neither a local folder nor a model on the hub that you may")
    assert "check the spelling" in told and "HF_TOKEN" in told


@pytest.mark.parametrize("status", [401, 403, 418, 429, 500, 503])
def test_other_answers_are_the_hubs_own_words_in_one_line(answers: Any, status: int) -> None:
    headers = {"X-Error-Message": "Invalid credentials in Authorization header"} if status == 401 else {}
    answers(lambda request: httpx2.Response(status, headers=headers, request=request))
    refusal = model_refusal("someone/tiny")
    assert refusal.startswith(f"model.name: the hub answers {status} for someone/tiny (")
    assert refusal.endswith("; see https://huggingface.co/someone/tiny, or name a folder, or use the profile pocket")
    assert status != 401 or "Invalid credentials" in refusal


def test_a_lost_connection_is_tried_again_but_not_for_ever(answers: Any) -> None:
    asked = answers(unplugged)
    assert model_refusal("someone/tiny") == (
        f"model.name: someone/tiny at revision {SHA} is not wholly in the hub's cache and the hub cannot be "
        "reached; connect, or name a folder, or use the profile pocket"
    )
    assert 2 <= len(asked) <= 12


def test_a_hub_that_recovers_is_read(answers: Any) -> None:
    """Three failures, then a listing without files: the download itself succeeded."""
    asked: list[Any] = []

    def recovers(request: httpx2.Request) -> httpx2.Response:
        if len(asked) <= 3:
            raise httpx2.ReadTimeout("slow", request=request)
        return httpx2.Response(200, json=[], request=request)

    asked = answers(recovers)
    assert "has no config.json" in model_refusal("someone/tiny")
    assert len(asked) == 4


def test_offline_without_a_copy(answers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(unplugged)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert model_refusal("openai-community/gpt2", None) == (
        "model.name: openai-community/gpt2 at revision main is not wholly in the hub's cache and the hub cannot "
        "be reached; unset HF_HUB_OFFLINE, or name a folder, or use the profile pocket"
    )
    assert asked == []


def test_a_copy_in_the_cache_is_read_without_network_and_one_that_is_cut_short_is_named(
    answers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"weights"}
    sizes = [{"type": "file", "path": name, "size": len(text), "oid": "0" * 40} for name, text in files.items()]

    def serves(request: httpx2.Request) -> httpx2.Response:
        if "/tree/" in request.url.path:
            return httpx2.Response(200, json=sizes, request=request)
        name = request.url.path.rsplit("/", 1)[1]
        text = files[name]
        headers = {"X-Repo-Commit": SHA, "ETag": f'"{name}"', "Content-Length": str(len(text))}
        return httpx2.Response(200, headers=headers, content=b"" if request.method == "HEAD" else text, request=request)

    answers(serves)
    folder = folder_of("someone/tiny")
    assert folder.name == SHA and (folder / "model.safetensors").read_bytes() == b"weights"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert folder_of("someone/tiny") == folder
    (folder / "model.safetensors").unlink()
    assert f"someone/tiny at revision {SHA} is not wholly in the hub's cache" in model_refusal("someone/tiny")


def test_a_model_without_a_revision_is_read_and_its_commit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / SHA
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(folder))
    with pytest.warns(UserWarning, match=f"someone/tiny is not pinned.*set revision to {SHA}"):
        assert folder_of("someone/tiny", None, weights=False) == folder


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def full(name: str, **_: Any) -> str:
        raise OSError(code, "told by the system")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    told = model_refusal("someone/tiny")
    assert "cannot be written to the hub's cache" in told and "(told by the system); set HF_HOME" in told


def test_a_fault_of_the_code_is_not_explained_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, **_: Any) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(ZeroDivisionError):
        folder_of("someone/tiny", weights=False)


# -- datasets, through datasets.load_dataset


def test_a_gated_dataset(answers: Any) -> None:
    answers(refuse(401, "GatedRepo"))
    assert dataset_refusal() == (
        "corpus.name: someone/text is gated: accept its terms at https://huggingface.co/datasets/someone/text, "
        "then run `hf auth login` or set HF_TOKEN"
    )


def test_a_dataset_or_a_revision_that_is_not_there(answers: Any) -> None:
    answers(refuse(404, "RevisionNotFound"))
    assert dataset_refusal(revision="v9").startswith("corpus.revision: someone/text has no revision v9 on the hub; ")
    pinned = hub.CORPUS.read_revision("monology/pile-uncopyrighted")
    assert "(pinned in sae_lib/data/hub.yaml)" in dataset_refusal("monology/pile-uncopyrighted", pinned)
    answers(refuse(401, "RepoNotFound"))
    assert dataset_refusal().startswith("corpus.name: someone/text is no dataset on the hub that you may read; check")


def test_a_dataset_out_of_reach(answers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(unplugged)
    assert dataset_refusal() == (
        f"corpus.name: someone/text at revision {SHA} is not wholly in the hub's cache and the hub cannot be "
        "reached; connect, or set corpus.source to documentation or files"
    )
    answers(refuse(503))
    assert f"someone/text at revision {SHA} is not wholly in the hub's cache" in dataset_refusal()


def test_datasets_of_probing_name_their_own_fields(answers: Any) -> None:
    answers(refuse(404, "RevisionNotFound"))
    with pytest.raises(ArtifactError, match=r"^probing\.revisions: fancyzhx/ag_news has no revision v9 on the hub; "):
        hub_texts("ag_news", ProbingConfig(revisions={"fancyzhx/ag_news": "v9"}))
    answers(refuse(403, "GatedRepo"))
    with pytest.raises(ArtifactError, match=r"^probing\.datasets: fancyzhx/ag_news is gated: accept its terms at "):
        hub_texts("ag_news", ProbingConfig())
