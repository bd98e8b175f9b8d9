"""How well latents can be told from examples of where they fire: automatic interpretation, with an offline judge.

Text is cut into windows. A latent's explanation is the windows in which it fires most strongly; it is tested on further
windows, half of which it fires in, evenly over how strongly. Scores are areas under the ROC curve, 0.5 by chance:

- surprisal: log p(window | examples) - log p(window), by the language model that the SAE reads;
- embedding: the cosine of mean residual streams over tokens, of the window and of the examples.

With an OpenAI-compatible judge, which puts the examples into words first, there are two more, shares of right answers:

- detection: does the explanation fit this window?
- fuzzing: are the words marked in this window those that the explanation names?

Source: 2410.13928 (delphi). There a large model explains; without one, examples stand for themselves.
"""

import json
import math
import os
import re
import urllib.request
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.absorption.main_latents import unit_latents
from sae_lib.metrics.registry import Column, Measured, Score, register
from sae_lib.metrics.stored_reference import require_width
from sae_lib.util.errors import ArtifactError, first_line
from sae_lib.util.strict import Seed, Strict

KEY_VARIABLE = "SAE_LIB_JUDGE_KEY"
TIMEOUT = 120  # seconds for one answer


class InterpretationConfig(Strict):
    latents: int = Field(50, ge=1)
    """Latents that are interpreted, drawn from those that fire in enough windows and are silent in enough."""
    examples: int = Field(5, ge=1)
    """Windows that explain a latent."""
    tested: int = Field(10, ge=2)
    """Windows of each kind that it is tested on."""
    window: int = Field(32, ge=4)
    """Tokens of a window."""
    seed: Seed = 0
    lm_batch: int = Field(16, ge=1)
    judge: str | None = None
    """Address of an OpenAI-compatible endpoint, such as http://localhost:8000/v1; its key, if it wants one, is read
    from the variable SAE_LIB_JUDGE_KEY."""
    judge_model: str = ""


class Windows(NamedTuple):
    tokens: Int[Tensor, "window token"]
    residual: Float[Tensor, "window token d_in"]


class Tested(NamedTuple):
    """Windows of one latent by number."""

    examples: Int[Tensor, " example"]
    fires: Int[Tensor, " tested"]
    silent: Int[Tensor, " tested"]


def read_windows(lm: LanguageModel, contexts: Int[Tensor, "context position"], config: InterpretationConfig) -> Windows:
    """All whole windows of the contexts without their first token, BOS, each read in its context. Raises ArtifactError:
    contexts are shorter than a window."""
    each = (contexts.shape[1] - 1) // config.window
    if each < 1:
        raise ArtifactError(
            f"interpretation.window: {config.window} tokens, contexts have {contexts.shape[1]}; lower it"
        )
    place = slice(1, 1 + each * config.window)
    residual = torch.cat([lm.finite_stream(part)[:, place].float().cpu() for part in contexts.split(config.lm_batch)])
    return Windows(contexts[:, place].reshape(-1, config.window), residual.reshape(-1, config.window, lm.d_in))


@torch.no_grad()
def interpret(sae: Autoencoder, lm: LanguageModel, windows: Windows, config: InterpretationConfig) -> dict[str, float]:
    """interpretation_surprisal and interpretation_embedding, means over latents, with a judge interpretation_detection
    and interpretation_fuzzing too (NaN without latents); interpretation_latents, how many there were.

    Raises ArtifactError: the SAE has another width than the windows, gives NaN or infinite latents, or the judge gives
    no answer.
    """
    require_width(sae, windows.residual.shape[2], "the windows have")
    seen = lm.not_special(windows.tokens)
    f = [unit_latents(sae, part.flatten(0, 1)).cpu() for part in windows.residual.split(8)]
    active = torch.cat(f).view(*windows.tokens.shape, -1) * seen[:, :, None]  # [window, token, d_sae]
    chosen = choose_latents(active.amax(dim=1), config)
    texts = windows.residual.mean(dim=1)
    texts = F.normalize(texts - texts.mean(dim=0), dim=1)
    plain = log_likelihoods(lm, [windows.tokens[:0]], windows.tokens, config.lm_batch)
    scores: dict[str, list[float]] = {"surprisal": [], "embedding": []}
    for latent, of in chosen.items():
        examples, fires, silent = of
        tested, labels = torch.cat([fires, silent]), [1] * len(fires) + [0] * len(silent)
        given = log_likelihoods(lm, windows.tokens[examples].split(1), windows.tokens[tested], config.lm_batch)
        scores["surprisal"].append(roc_auc_score(labels, given - plain[tested]))
        scores["embedding"].append(roc_auc_score(labels, texts[tested] @ texts[examples].mean(dim=0)))
        if config.judge:
            for name, share in ask_judge(lm, windows, active[:, :, latent] > 0, of, config).items():
                scores.setdefault(name, []).append(share)
    means = {
        f"interpretation_{name}": float(np.mean(values)) if values else math.nan for name, values in scores.items()
    }
    return means | {"interpretation_latents": len(chosen)}


def choose_latents(peaks: Float[Tensor, "window d_sae"], config: InterpretationConfig) -> dict[int, Tested]:
    """Latents drawn at random, and their windows: those of the highest peaks as examples, of the others that fire some
    evenly over the order of their peaks, and silent ones at random."""
    generator = torch.Generator().manual_seed(config.seed)
    on = peaks > 0
    enough = (on.sum(dim=0) >= config.examples + config.tested) & ((~on).sum(dim=0) >= config.tested)
    candidates = enough.nonzero().flatten()
    found = {}
    for latent in candidates[torch.randperm(len(candidates), generator=generator)[: config.latents]].tolist():
        order = peaks[:, latent].argsort(descending=True)[: int(on[:, latent].sum())]
        rest = order[config.examples :]
        evenly = torch.linspace(0, len(rest) - 1, config.tested).round().long()
        off = (~on[:, latent]).nonzero().flatten()
        silent = off[torch.randperm(len(off), generator=generator)[: config.tested]]
        found[latent] = Tested(order[: config.examples], rest[evenly], silent)
    return found


def log_likelihoods(
    lm: LanguageModel, before: Sequence[Int[Tensor, "some token"]], texts: Int[Tensor, "text token"], batch: int
) -> Float[Tensor, " text"]:
    """Mean log-likelihood of each text's tokens after BOS and the windows `before`, blank lines between."""
    gap = torch.tensor(lm.tokenizer.encode("\n\n", add_special_tokens=False), dtype=torch.long)
    pieces = [piece for window in before if window.numel() for piece in (window.flatten(), gap)]
    prefix = torch.cat([torch.tensor([lm.bos_token_id]), *pieces])
    found = []
    for part in texts.split(batch):
        rows = torch.cat([prefix.expand(len(part), -1), part], dim=1)
        logits = lm.logits(rows)[:, len(prefix) - 1 : -1].float()
        found.append(-F.cross_entropy(logits.flatten(0, 1), part.flatten().to(logits.device), reduction="none").cpu())
    return torch.cat(found).view(len(texts), -1).mean(dim=1)


QUESTIONS = {"detection": "Does this text have it?", "fuzzing": "Are exactly the marked parts of this text it?"}


def ask_judge(
    lm: LanguageModel, windows: Windows, marks: Bool[Tensor, "window token"], of: Tested, config: InterpretationConfig
) -> dict[str, float]:
    """Shares of right answers; `marks` says where the latent fires."""
    generator = torch.Generator().manual_seed(config.seed)

    def text(window: int, marked: Tensor) -> str:
        pieces = (str(lm.tokenizer.decode([token])) for token in windows.tokens[window].tolist())
        return "".join(f"<<{piece}>>" if mark else piece for piece, mark in zip(pieces, marked.tolist(), strict=True))

    def elsewhere(window: int) -> Tensor:
        return marks[window][torch.randperm(marks.shape[1], generator=generator)]

    none, fires, silent = torch.zeros_like(marks[0]), of.fires.tolist(), of.silent.tolist()
    shown = "\n".join(f"- {text(i, marks[i])!r}" for i in of.examples.tolist())
    fires_on = f"A feature of a language model fires on the text between << and >>:\n{shown}\nIn one line, what is it?"
    explanation = chat(config, fires_on)
    cases = {
        "detection": [(text(i, none), True) for i in fires] + [(text(i, none), False) for i in silent],
        "fuzzing": [(text(i, marks[i]), True) for i in fires] + [(text(i, elsewhere(i)), False) for i in fires],
    }

    def fits(name: str, case: str) -> bool:
        asked = f"A feature: {explanation}\n{QUESTIONS[name]} Answer yes or no.\n{case!r}"
        return bool(re.match(r"\W*yes", chat(config, asked), re.IGNORECASE))

    return {
        name: float(np.mean([fits(name, case) == truth for case, truth in of_kind])) for name, of_kind in cases.items()
    }


def chat(config: InterpretationConfig, prompt: str) -> str:
    """The judge's answer. Raises ArtifactError: there is none."""
    messages = [{"role": "user", "content": prompt}]
    body = json.dumps({"model": config.judge_model, "messages": messages, "temperature": 0}).encode()
    key = os.environ.get(KEY_VARIABLE)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    address = f"{str(config.judge).rstrip('/')}/chat/completions"
    if not address.startswith(("http://", "https://")):
        raise ArtifactError(f"interpretation.judge: {config.judge} is no address; it begins with http:// or https://")
    try:
        with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=TIMEOUT) as answer:
            return str(json.load(answer)["choices"][0]["message"]["content"])
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ArtifactError(
            f"interpretation.judge: {config.judge} gives no answer ({first_line(error)}); check the address, "
            f"interpretation.judge_model and {KEY_VARIABLE}"
        ) from None


register(
    Score(
        name="interpretation",
        version=1,
        settings=InterpretationConfig,
        reference=lambda inputs: read_windows(inputs.lm, inputs.held_out, inputs.settings("interpretation")),
        evaluate=lambda saes, inputs, earlier: [
            Measured(interpret(sae, inputs.lm, inputs.reference("interpretation"), inputs.settings("interpretation")))
            for sae in saes
        ],
        optional=True,
        columns={
            "interpretation_surprisal": Column("surprisal, AUC", "higher", 3),
            "interpretation_embedding": Column("embedding, AUC", "higher", 3),
            "interpretation_detection": Column("detection", "higher", 3),
            "interpretation_fuzzing": Column("fuzzing", "higher", 3),
            "interpretation_latents": Column("latents", "none", 0),
        },
    )
)
