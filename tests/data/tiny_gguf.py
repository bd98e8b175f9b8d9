"""Tiny language models written as GGUF files, as llama.cpp's converter writes large ones."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.tiny_models import BOS, EOS, PAD, UNKNOWN, VOCABULARY, configuration

SPECIALS = ("<bos>", "<eos>", "<pad>", "<unk>")
# Byte-level: Ġ is a space. The pair of spaces shows whether digits are split off as SmolLM2's tokenizer does.
TOKENS = [*SPECIALS, *"abcdefghijklmnopqrstuvwxyz", *"0123", "Ġ", "ĠĠ", "Ġa", "ab", "Ċ", "."]
MERGES = ["Ġ Ġ", "Ġ a", "a b"]
FAMILIES = ("llama", "gpt2", "gemma2")
ARCHITECTURES = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}


def tiny_model(family: str, width: int = 0) -> PreTrainedModel:
    """An untrained model whose configuration a GGUF file can say in full."""
    torch.manual_seed(0)
    config = configuration(family)
    if family == "gpt2":
        config.n_positions = 1024  # transformers does not read it from the file
    if width:  # of 32-fold blocks, as quantised tensors need
        config.hidden_size = config.intermediate_size = width
        config.head_dim = width // config.num_attention_heads
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or "ln_" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def write_gguf(
    file: Path,
    family: str,
    model: PreTrainedModel,
    *,
    pre: str = "smollm",
    left_out: str = "",
    architecture: str = "",
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> None:
    """Write the model with matrices of one kind. `left_out` is the name of a tensor that is not written."""
    config = model.config
    writer = gguf.GGUFWriter(file, architecture or family)
    writer.add_name(f"tiny {family}")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if family == "gpt2":
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(config.head_dim)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_vocab_size(VOCABULARY)
    if family == "gemma2":
        writer.add_sliding_window(config.sliding_window)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(TOKENS) - len(SPECIALS)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(PAD)
    writer.add_unk_token_id(UNKNOWN)
    names = gguf.get_tensor_name_map(ARCHITECTURES[family], config.num_hidden_layers)
    tied = set(model.all_tied_weights_keys)
    for name, tensor in model.state_dict().items():
        if name in tied or name == left_out:
            continue
        written = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert written is not None, name
        values = np.ascontiguousarray(_as_written(family, name, tensor.numpy(), config))
        if kind != gguf.GGMLQuantizationType.F32 and values.ndim == 2:
            writer.add_tensor(written, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(written, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _as_written(family: str, name: str, values: Any, config: Any) -> Any:
    """llama.cpp's layout of a tensor."""
    if family == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return values.T
    if family == "gemma2" and name.endswith("norm.weight"):
        return values + 1
    for projection, heads in (
        ("q_proj", config.num_attention_heads),
        ("k_proj", getattr(config, "num_key_value_heads", 1)),
    ):
        if family == "llama" and f"{projection}.weight" in name:  # the halves of each head lie interleaved
            return values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
    return values
