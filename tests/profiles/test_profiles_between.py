"""The shipped profiles of hub models, run from text to scores on a tiny local model of the same architecture.

Only what must be small or local is replaced: the model's folder, the text, and sizes. The tokenizers are byte-level BPE
laid out as the hub's repositories of these models are.
"""

from __future__ import annotations

import json
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, GPT2Config, GPTNeoXConfig

from sae_lib.data.config import ModelConfig
from sae_lib.data.language_model import LanguageModel
from sae_lib.data.model_loading import POCKET_FOLDER
from sae_lib.data.words import QUESTION, alphabetic_words, prompt_pieces, single_token_words
from sae_lib.profiles.profile import PROFILES, load_profile
from sae_lib.profiles.runs import plan_runs
from sae_lib.study.experiment import Experiment
from sae_lib.study.scoring import evaluate
from sae_lib.training.recipes import merged

FAMILIES = {"pythia-70m": "gpt_neox", "gpt2": "gpt2", "gemma-2-2b": "gemma2"}
END = "<|endoftext|>"
SYLLABLES = ("ba", "ce", "di", "fo", "gu", "ha", "ke", "li", "mo", "nu", "pa", "re", "si", "to", "vu", "za")
WORDS = [first + second + "n" for first in SYLLABLES for second in SYLLABLES]
# tokenizer_config.json as the repositories of both models have it.
TOKENIZER_CONFIG: dict[str, dict[str, Any]] = {
    "gpt2": {"model_max_length": 1024},
    "gpt_neox": {
        "add_prefix_space": False,
        "bos_token": END,
        "eos_token": END,
        "unk_token": END,
        "tokenizer_class": "GPTNeoXTokenizer",
    },
}


def texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices([*WORDS, *(word.title() for word in WORDS)], k=60)) + ".\n" for _ in range(count)]


def save_tokenizer(folder: Path, family: str) -> int:
    """A tokenizer of this family in `folder`; returns the size of its vocabulary."""
    if family == "gemma2":
        for file in POCKET_FOLDER.glob("tokenizer*"):
            shutil.copy(file, folder)
        return len(AutoTokenizer.from_pretrained(folder))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1300, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    letters = "".join(f" {letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    tokenizer.train_from_iterator([*texts(300), *[f"X{QUESTION}{letters}\n"] * 50], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG[family]))
    if family == "gpt2":
        tokenizer.model.save(str(folder))
    return tokenizer.get_vocab_size()


def save_model(folder: Path, family: str, layers: int) -> None:
    """Random weights and a tokenizer, as a repository of this family has them."""
    folder.mkdir()
    vocabulary = save_tokenizer(folder, family)
    size: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "max_position_embeddings": 160,
    }
    ends: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0}
    configuration: Any
    if family == "gpt2":
        configuration = GPT2Config(n_embd=16, n_layer=layers, n_head=2, n_positions=160, vocab_size=vocabulary, **ends)
    elif family == "gpt_neox":
        configuration = GPTNeoXConfig(vocab_size=vocabulary + 7, **size, **ends)  # padded, as Pythia's
    else:
        configuration = Gemma2Config(vocab_size=vocabulary, num_key_value_heads=1, head_dim=8, **size)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(configuration).save_pretrained(folder)


def tiny_version(name: str, folder: Path) -> Path:
    """The shipped profile `name` on a tiny local model and local text, with everything of a size made small."""
    shipped = yaml.safe_load((PROFILES / f"{name}.yaml").read_text())
    layer = shipped["model"]["layer"]
    save_model(folder / "model", FAMILIES[name], layer + 2)
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(200, seed=1)))
    for section in ("model", "corpus"):
        shipped[section].pop("revision", None)
    changes: dict[str, Any] = {
        "model": {"name": str(folder / "model"), "device": "cpu"},
        "corpus": {
            "source": "files", "files": [str(folder / "text.jsonl")], "name": None, "held_out_fraction": 0.2,
            "calibration_fraction": 0.1,
        },
        "data": {
            "train_tokens": 4096, "held_out_contexts": 2, "calibration_contexts": 2, "batch_tokens": 128,
            "shard_rows": 2048,
        },
        "training": {
            "d_sae": 64, "steps": 12, "schedule_scale": 0.003, "workers": 1, "seeds": [42], "ablation_seeds": [42],
            "log_every": 4, "checkpoint_every": 6,
        },
        "methods": {method: {"k": 8} for method in ("topk", "batchtopk", "matryoshka_2", "matryoshka_4")}
        | {"jumprelu": {"target_l0": 8}},
        "as_written": {"topk": {"k": 16}, "jumprelu": {"target_l0": 16}},
        "sweep": {"target_l0": 8, "levels": [4, 16], "compare_at": [8]},
        "evaluation": {"absorption": {"max_words": 300, "probe_epochs": 3, "sparse_min_steps": 2}},
    }  # fmt: skip
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(merged(shipped, changes | {"name": f"tiny-{name}"})))
    return file


@pytest.mark.parametrize("name", FAMILIES)
def test_from_text_to_scores(name: str, tmp_path: Path) -> None:
    experiment = Experiment.open(str(tiny_version(name, tmp_path)))
    shipped = load_profile(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # GPT-2's EOS opens a context: said once, tested elsewhere
        lm = experiment.language_model(whole=False)
        experiment.build_tokens(lm.tokenizer)
        store = experiment.harvest(lm)
        assert (store.n_rows, store.d_in) == (4096, 16)
        runs = [spec for spec in plan_runs(experiment.profile, groups=["main"]) if spec.method in ("standard", "topk")]
        assert len(experiment.train(runs)["step"].unique()) == 4  # 0, 4, 8 and the last
        found = evaluate(experiment, runs, scores=("reconstruction", "absorption"))
    assert experiment.profile.model.layer == shipped.model.layer
    rows = found.rows.set_index("method")
    assert rows.loc["topk", "l0"] == pytest.approx(8, abs=0.5)
    assert rows[["explained_variance", "ce_score"]].notna().all(axis=None)
    # A model that was never trained knows few letters, if any: that is counted, and a mean over none is missing.
    assert rows["letters"].lt(20).all() and rows["probe_f1"].between(0, 1).all()
    assert (rows["absorption_fraction"].isna() == rows["letters"].eq(0)).all()
    assert len(found.tables["letters"]) == rows["letters"].sum()


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_words_of_a_byte_level_vocabulary(family: str, tmp_path: Path) -> None:
    """Each word is one token in the prompt's text, with its leading space where it has one."""
    save_tokenizer(tmp_path, family)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.bos_token == tokenizer.eos_token == END
    pieces = prompt_pieces(tokenizer)
    assert tokenizer.decode([*pieces.opening, *pieces.question]) == f"\n{QUESTION}"
    assert [tokenizer.decode(answer) for answer in pieces.answers[:2]] == [" A", " B"]
    words = alphabetic_words(tokenizer, frozenset(tokenizer.all_special_ids))
    usable = single_token_words(tokenizer, words, pieces)
    spaced = {word.text for word in usable if word.text.startswith(" ")}
    assert {f" {word}" for word in WORDS} <= spaced and len(spaced) > len(WORDS)
    for word in usable[::40]:
        assert tokenizer.decode([word.token]) == word.text
        assert tokenizer.encode(f"\n{word.text}{QUESTION}") == [*pieces.opening, word.token, *pieces.question]
    assert END not in {word.text for word in words}


def test_weights_as_the_repository_of_gpt2_has_them(tmp_path: Path) -> None:
    """Named without `transformer.`, with the attention's masks, and without the head, which is the embedding."""
    save_model(tmp_path / "model", "gpt2", 3)
    config = ModelConfig(name=str(tmp_path / "model"), layer=1, device="cpu")
    tokens = torch.arange(12).view(1, 12)
    expected = LanguageModel.load(config, whole=True).logits(tokens)
    file = tmp_path / "model" / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    tensors.pop("lm_head.weight", None)
    tensors |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 160, 160) for layer in range(3)}
    save_file(tensors, file, metadata={"format": "pt"})
    assert torch.equal(LanguageModel.load(config, whole=True).logits(tokens), expected)
    cut = LanguageModel.load(config, whole=False)
    assert cut.residual_stream(tokens).shape == (1, 12, 16)


def test_weights_as_the_repository_of_pythia_has_them(tmp_path: Path) -> None:
    """In half precision, with the attention's masks and rotary frequencies beside the weights."""
    save_model(tmp_path / "model", "gpt_neox", 3)
    config = ModelConfig(name=str(tmp_path / "model"), layer=1, device="cpu")
    tokens = torch.arange(12).view(1, 12)
    file = tmp_path / "model" / "model.safetensors"
    tensors = {name: tensor.half() for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    expected = LanguageModel.load(config, whole=True).logits(tokens)
    for layer in range(3):
        attention = f"gpt_neox.layers.{layer}.attention"
        tensors |= {
            f"{attention}.bias": torch.ones(1, 1, 160, 160, dtype=torch.bool),
            f"{attention}.masked_bias": torch.tensor(-1e9),
            f"{attention}.rotary_emb.inv_freq": torch.ones(1),
        }
    save_file(tensors, file, metadata={"format": "pt"})
    lm = LanguageModel.load(config, whole=True)
    assert lm.dtype == torch.float32 and torch.equal(lm.logits(tokens), expected)
