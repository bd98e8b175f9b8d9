"""Interpretation of latents whose meaning is known, by the packaged language model and by a judge on this machine."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.config import ModelConfig
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.interpretation import (
    KEY_VARIABLE,
    InterpretationConfig,
    Windows,
    choose_latents,
    interpret,
    log_likelihoods,
    read_windows,
)
from sae_lib.metrics.registry import SCORES, usual_scores
from sae_lib.metrics.scores import interpretation
from sae_lib.util.errors import ArtifactError
from tests.metrics.tiny_saes import make_sae

CONFIG = InterpretationConfig(latents=4, examples=3, tested=4, window=8)
SUBJECTS = ("the banana and the apple and the cherry ", ">>> x = np.array([1, 2, 3]) ")


@pytest.fixture(scope="module")
def pocket() -> LanguageModel:
    return LanguageModel.load(ModelConfig(name="pocket", layer=2, dtype="float32", device="cpu"), whole=True)


@pytest.fixture(scope="module")
def windows(pocket: LanguageModel) -> Windows:
    """Contexts of either subject in turn."""
    rows = [pocket.tokenizer.encode(SUBJECTS[i % 2] * 12, add_special_tokens=False)[i // 2 :][:32] for i in range(16)]
    return read_windows(pocket, torch.tensor([[pocket.bos_token_id, *row] for row in rows]), CONFIG)


def of_subjects(windows: Windows) -> Autoencoder:
    """Latent 0 fires on the first subject, latent 1 on the second, latents 2 and 3 on windows by their number."""
    n = len(windows.tokens)
    subject = torch.arange(n) // 4 % 2
    texts = windows.residual.mean(dim=1)
    direction = texts[subject == 0].mean(dim=0) - texts[subject == 1].mean(dim=0)
    middle = float((texts @ direction).mean())
    sae = make_sae(architecture="standard", d_sae=2, d_in=windows.residual.shape[2])
    with torch.no_grad():
        sae.W_enc.copy_(torch.stack([direction, -direction], dim=1))
        sae.b_enc.copy_(torch.tensor([-middle, middle]))
    return sae


def test_windows_are_read_in_their_context(pocket: LanguageModel, windows: Windows) -> None:
    assert windows.tokens.shape == (64, 8) and windows.residual.shape == (64, 8, pocket.d_in)
    context = torch.cat([torch.tensor([pocket.bos_token_id]), windows.tokens[:4].flatten()])
    torch.testing.assert_close(pocket.residual_stream(context[None])[0, 9:17], windows.residual[1])
    with pytest.raises(ArtifactError, match="window: 8 tokens, contexts have 8"):
        read_windows(pocket, torch.zeros(2, 8, dtype=torch.long), CONFIG)


def test_likelihood_of_a_window_after_others(pocket: LanguageModel, windows: Windows) -> None:
    found = log_likelihoods(pocket, windows.tokens[:2].split(1), windows.tokens[2:5], batch=2)
    gap = pocket.tokenizer.encode("\n\n", add_special_tokens=False)
    before = [pocket.bos_token_id, *windows.tokens[0].tolist(), *gap, *windows.tokens[1].tolist(), *gap]
    log_p = pocket.logits(torch.tensor([[*before, *windows.tokens[3].tolist()]]))[0].log_softmax(dim=-1)
    expected = [log_p[len(before) - 1 + i, token] for i, token in enumerate(windows.tokens[3].tolist())]
    assert found.tolist()[1] == pytest.approx(float(torch.stack(expected).mean()), abs=1e-5)


def test_which_windows_test_a_latent() -> None:
    peaks = torch.zeros(12, 5)
    peaks[:8, 0] = torch.arange(8) + 1.0
    peaks[:6, 1] = 1.0  # fires too rarely
    peaks[:, 2] = 1.0  # is never silent
    ((latent, of),) = choose_latents(peaks, CONFIG).items()
    assert latent == 0 and of.examples.tolist() == [7, 6, 5]
    assert of.fires.tolist() == [4, 3, 1, 0] and {*of.silent.tolist()} == {8, 9, 10, 11}


def test_latents_with_a_meaning_are_told_and_others_are_not(pocket: LanguageModel, windows: Windows) -> None:
    known = interpret(of_subjects(windows), pocket, windows, CONFIG)
    assert known["interpretation_latents"] == 2
    assert known["interpretation_surprisal"] > 0.95 and known["interpretation_embedding"] > 0.95
    random = torch.randperm(len(windows.tokens), generator=torch.Generator().manual_seed(0))
    shuffled = windows._replace(residual=windows.residual[random])  # latents fire without regard to the text
    unknown = interpret(of_subjects(windows), pocket, shuffled, CONFIG.model_copy(update={"tested": 8}))
    assert abs(unknown["interpretation_surprisal"] - 0.5) < 0.3
    silent = make_sae(architecture="standard", d_sae=3, d_in=pocket.d_in)
    with torch.no_grad():
        silent.W_enc.zero_()
    nothing = interpret(silent, pocket, windows, CONFIG)
    assert nothing["interpretation_latents"] == 0 and math.isnan(nothing["interpretation_surprisal"])
    with pytest.raises(ArtifactError, match="d_in is 4, the windows have 128"):
        interpret(make_sae(architecture="standard", d_sae=3, d_in=4), pocket, windows, CONFIG)


def test_areas_are_those_of_the_definition(pocket: LanguageModel, windows: Windows) -> None:
    config = CONFIG.model_copy(update={"latents": 1, "seed": 1})
    sae = of_subjects(windows)
    f = sae.encode(windows.residual.flatten(0, 1)).detach().view(64, 8, 2) * sae.W_dec.detach().norm(dim=1)
    ((_, of),) = choose_latents(f.amax(dim=1), config).items()
    tested = torch.cat([of.fires, of.silent])
    gain = log_likelihoods(pocket, windows.tokens[of.examples].split(1), windows.tokens[tested], 16)
    gain -= log_likelihoods(pocket, [], windows.tokens[tested], 16)
    found = interpret(sae, pocket, windows, config)["interpretation_surprisal"]
    assert found == pytest.approx(roc_auc_score([1] * 4 + [0] * 4, gain))


@pytest.fixture
def judge() -> Iterator[tuple[str, list[tuple[str | None, dict[str, Any]]]]]:
    """An endpoint that knows the subject of the first marked example, and answers by it; what it was asked."""
    asked: list[tuple[str | None, dict[str, Any]]] = []

    class Judge(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.headers.get("Authorization"), body))
            prompt = body["messages"][0]["content"]
            fruit = any(word in prompt.splitlines()[-1] for word in ("ana", "app", "err", "the"))
            answer = "yes" if fruit == prompt.startswith("A feature: fruit") else "No."
            if prompt.startswith("A feature of"):
                answer = "fruit" if "the" in prompt.splitlines()[1] else "code"
            reply = json.dumps({"choices": [{"message": {"content": answer}}]}).encode()
            self.send_response(404 if body["model"] == "lost" else 200)
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Judge)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked
    server.shutdown()
    server.server_close()


def test_a_judge_that_answers(
    pocket: LanguageModel, windows: Windows, judge: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, asked = judge
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    config = CONFIG.model_copy(update={"judge": address, "judge_model": "small"})
    found = interpret(of_subjects(windows), pocket, windows, config)
    assert found["interpretation_detection"] > 0.9, "it reads the subject"
    assert 0.3 < found["interpretation_fuzzing"] < 0.7, "it does not look at the marks"
    assert len(asked) == 2 * (1 + 8 + 8) and {key for key, _ in asked} == {"Bearer secret"}
    assert "<<" in asked[0][1]["messages"][0]["content"] and asked[0][1]["model"] == "small"
    with pytest.raises(ArtifactError, match=r"interpretation.judge: .* gives no answer .*404"):
        interpret(of_subjects(windows), pocket, windows, config.model_copy(update={"judge_model": "lost"}))


@pytest.mark.parametrize("address", ["file:///etc", "localhost:8000"])
def test_an_address_that_is_none(pocket: LanguageModel, windows: Windows, address: str) -> None:
    with pytest.raises(ArtifactError, match=f"interpretation.judge: {address} is no address"):
        interpret(of_subjects(windows), pocket, windows, CONFIG.model_copy(update={"judge": address}))


def test_it_is_computed_only_where_it_is_asked_for() -> None:
    assert "interpretation" in SCORES and "interpretation" not in usual_scores()
    assert interpretation.KEY_VARIABLE == KEY_VARIABLE
