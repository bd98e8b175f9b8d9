"""What SAEBench asks for, made from ours: a TransformerLens model and an SAE with its interface.

Needs the libraries of `tests/oracles/requirements.lock`, which the artifact itself does not use.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from sae_bench.custom_saes.base_sae import BaseSAE
from sae_bench.evals.absorption.common import load_or_train_probe
from sae_bench.evals.absorption.eval_config import AbsorptionEvalConfig
from sae_bench.evals.absorption.feature_absorption import run_feature_absortion_experiment
from sae_bench.evals.absorption.k_sparse_probing import run_k_sparse_probing_experiment
from sae_bench.evals.absorption.main import _aggregate_results_df
from sae_bench.evals.absorption.probing import LinearProbe, save_probe_and_data
from sae_bench.evals.core.eval_config import CoreEvalConfig
from sae_bench.evals.core.main import run_evals
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gemma_weights

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.absorption.reference import AbsorptionReference

TEMPLATE = "{word} has the first letter:"
TOKEN_POSITION = -6


def hooked_transformer(lm: LanguageModel) -> HookedTransformer:
    """A Gemma-2 language model as TransformerLens holds it, from its configuration and weights, without network.

    Weights are taken over as they are (`from_pretrained_no_processing`, which SAEBench uses).
    """
    config: Any = lm.model.config
    hooked = HookedTransformer(
        HookedTransformerConfig(
            model_name=lm.name,
            d_model=config.hidden_size,
            d_head=config.head_dim,
            n_heads=config.num_attention_heads,
            n_key_value_heads=config.num_key_value_heads,
            d_mlp=config.intermediate_size,
            n_layers=config.num_hidden_layers,
            n_ctx=config.max_position_embeddings,
            d_vocab=lm.vocab_size,
            eps=config.rms_norm_eps,
            act_fn=config.hidden_activation,
            normalization_type="RMS",
            final_rms=True,
            use_normalization_before_and_after=True,
            gated_mlp=True,
            positional_embedding_type="rotary",
            rotary_base=config.rope_parameters["rope_theta"],
            rotary_dim=config.head_dim,
            rotary_adjacent_pairs=False,
            use_attn_scale=True,
            attn_scale=config.query_pre_attn_scalar**0.5,
            attn_scores_soft_cap=config.attn_logit_softcapping or -1.0,
            output_logits_soft_cap=config.final_logit_softcapping or -1.0,
            use_local_attn=True,
            window_size=config.sliding_window,
            attn_types=["local" if kind == "sliding_attention" else "global" for kind in config.layer_types],
            dtype=lm.dtype,
            device=str(lm.device),
            default_prepend_bos=True,
            original_architecture="Gemma2ForCausalLM",
        ),
        tokenizer=lm.tokenizer,
    )
    weights = convert_gemma_weights(lm.model, hooked.cfg)
    hooked.load_and_process_state_dict(
        weights, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    return hooked.eval().requires_grad_(False)


class PeerSAE(BaseSAE):
    """An SAE behind SAEBench's interface, its decoder rows of norm 1 and their norms in the activations."""

    def __init__(self, sae: Autoencoder, model_name: str, layer: int) -> None:
        super().__init__(sae.d_in, sae.d_sae, model_name, layer, sae.device, sae.dtype)
        self.__dict__["ours"] = sae  # not as a module: its tensors are not SAEBench's to move
        self.norms = sae.W_dec.detach().norm(dim=1)
        with torch.no_grad():
            self.W_enc.copy_(sae.W_enc)
            self.W_dec.copy_(sae.W_dec / self.norms[:, None])
            self.b_enc.copy_(sae.b_enc)
            self.b_dec.copy_(sae.b_dec)
        self.requires_grad_(False)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        latents: Tensor = self.ours.encode(x) * self.norms
        return latents

    def decode(self, feature_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        return feature_acts @ self.W_dec + self.b_dec

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        return self.decode(self.encode(x))


class TokenStore:
    """SAEBench's activation store, as far as its core evaluation asks: contexts of tokens, in order."""

    def __init__(self, tokens: Tensor, batch: int) -> None:
        self.tokens, self.store_batch_size_prompts = tokens, batch
        self.context_size = tokens.shape[1]
        self.at = 0

    def get_batch_tokens(self, batch_size: int) -> Tensor:
        rows = self.tokens[self.at : self.at + batch_size]
        self.at += batch_size
        return rows

    def reset_input_dataset(self) -> None:
        self.at = 0


def save_probe_inputs(reference: AbsorptionReference, folder: Path, model_name: str, layer: int) -> None:
    """Put our words, split, residual streams and ground-truth probe where SAEBench looks for its own."""
    place = folder / model_name / f"layer_{layer}"
    place.mkdir(parents=True, exist_ok=True)
    splits = (("train", reference.train_words), ("test", reference.test_words))
    for split, words in splits:
        pd.DataFrame({"token": words}).to_csv(place / f"{split}_df.csv", index=True)
    probe = LinearProbe(reference.probe.weight.shape[1], len(reference.probe.weight))
    with torch.no_grad():
        probe.fc.weight.copy_(reference.probe.weight)
        probe.fc.bias.copy_(reference.probe.bias)
    save_probe_and_data(
        probe,
        {
            "X_train": reference.train_activations,
            "X_test": reference.test_activations,
            "y_train": reference.train_labels,
            "y_test": reference.test_labels,
        },
        place,
    )


def ignored_tokens(lm: LanguageModel) -> set[int | None]:
    """The tokens that SAEBench's core evaluation leaves out of its means."""
    return {lm.tokenizer.pad_token_id, lm.tokenizer.eos_token_id, lm.tokenizer.bos_token_id}


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and reports that SAEBench prints."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def train_probe(hooked: HookedTransformer, layer: int, folder: Path) -> None:
    """SAEBench's set-up, unless `folder` has it: residual streams of the vocabulary and the ground-truth probe."""
    load_or_train_probe(
        hooked, base_template=TEMPLATE, pos_idx=TOKEN_POSITION, layer=layer, probes_dir=folder, device="cpu"
    )


def run_absorption(
    sae: Autoencoder, hooked: HookedTransformer, layer: int, probes: Path, **k_sparse: Any
) -> dict[str, float]:
    """SAEBench's absorption of one SAE, as its `run_eval` computes it: means over the letters with F1 > 0.6."""
    config = AbsorptionEvalConfig(model_name=hooked.cfg.model_name)
    with tempfile.TemporaryDirectory() as folder:
        shared: dict[str, Any] = {
            "model": hooked, "sae": PeerSAE(sae, hooked.cfg.model_name, layer), "layer": layer, "sae_name": "sae",
            "max_k_value": config.max_k_value, "prompt_template": TEMPLATE, "prompt_token_pos": TOKEN_POSITION,
            "probes_dir": probes, "device": "cpu",
        }  # fmt: skip
        sparse = Path(folder) / "sparse"
        metrics = run_k_sparse_probing_experiment(**shared, **k_sparse, experiment_dir=sparse, verbose=False)
        words = run_feature_absortion_experiment(
            **shared, experiment_dir=Path(folder) / "words", sparse_probing_experiment_dir=sparse
        )
    letters = _aggregate_results_df(words).set_index("letter")
    found = metrics.set_index("letter")["f1_probe"] > config.min_GT_probe_f1
    columns = ["mean_absorption_fraction", "full_absorption_rate", "num_split_feats"]
    means: dict[str, float] = letters.loc[found[letters.index], columns].astype(float).mean().to_dict()
    return means


def run_core(
    sae: Autoencoder, lm: LanguageModel, hooked: HookedTransformer, tokens: Tensor, batch: int = 16
) -> dict[str, float]:
    """SAEBench's core metrics of one SAE on these contexts."""
    batches = len(tokens) // batch
    groups, _ = run_evals(
        PeerSAE(sae, hooked.cfg.model_name, lm.layer),
        TokenStore(tokens, batch),
        hooked,
        CoreEvalConfig(
            batch_size_prompts=batch,
            n_eval_reconstruction_batches=batches,
            n_eval_sparsity_variance_batches=batches,
            exclude_special_tokens_from_reconstruction=True,
            compute_featurewise_density_statistics=True,
            compute_kl=True,
            compute_ce_loss=True,
            compute_l2_norms=True,
            compute_sparsity_metrics=True,
            compute_variance_metrics=True,
        ),
        ignore_tokens=ignored_tokens(lm),
    )
    return {name: value for group in groups.values() for name, value in group.items()}
