"""A causal language model, read at one place: the residual stream after block `layer`.

Loaded for harvesting, it is cut: later blocks and the head are never read from disk. Loaded whole, it also gives
logits, with the residual stream replaced on the way by whatever is to be judged: a reconstruction, zeros, a mean.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae_lib.data.model_loading import load_model
from sae_lib.data.tokens import boundary_tokens, special_ids
from sae_lib.util.errors import ArtifactError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sae_lib.data.config import ModelConfig

Tokens = Int[Tensor, "context position"]


class LanguageModel:
    """Any causal language model of transformers with its tokenizer, in evaluation mode and without gradients.

    `model`: unless `whole`, the base model alone, cut after block `layer` (from 0); `vocab_size`: rows of the token
    embedding; `max_positions`: tokens in a context where positions are learned, else None; `bos_token_id` opens a
    context (a tokenizer without one lends its EOS); `special_ids`: what no SAE sees, with the tokenizer's entries that
    have no embedding; `remarks`: what there is to know about the model (warnings say it too); `identity`: sha256 over
    weights (a hub model's commit), configuration, tokenizer, layer and dtype, whether cut or whole.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        layer: int,
        whole: bool,
        identity: str,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.name, self.identity = tokenizer, name, identity
        self.layer, self.whole = layer, whole
        config = model.config.get_text_config()
        self.d_in: int = config.hidden_size
        embedding: Any = model.get_input_embeddings()
        self.vocab_size: int = embedding.weight.shape[0]
        self.max_positions = learned_positions(model)
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.bos_token_id, _ = boundary_tokens(tokenizer)
        unknown = frozenset(token for token in tokenizer.get_vocab().values() if token >= self.vocab_size)
        self.special_ids = special_ids(tokenizer) | unknown
        opening = f"its EOS {tokenizer.eos_token!r} opens every context"
        remarks = {
            f"the tokenizer of {name} has no BOS: {opening}": tokenizer.bos_token_id is None,
            f"{name} has no embedding for {len(unknown)} entries of its tokenizer: they are no words": bool(unknown),
        }
        self.remarks = [remark for remark, holds in remarks.items() if holds]
        for remark in self.remarks:
            warnings.warn(remark, stacklevel=3)
        if (path := blocks_path(model.base_model)) is None:
            kind = type(model).__name__
            raise ArtifactError(f"model.name: {name} ({kind}) has no list of decoder blocks to read from")
        self._blocks = cast(nn.ModuleList, model.base_model.get_submodule(path))
        self._block = self._blocks[layer]
        self.centred = False
        self._returns_tuple = False
        self._resumes: bool | None = None

    @classmethod
    def load(cls, config: ModelConfig, *, whole: bool) -> LanguageModel:
        """Load the model that a profile names; `whole` keeps the later blocks and the head, for `logits`.

        Raises ArtifactError: a model that is not there or may not be read, a layer, dtype or device it does not have,
        weights larger than the free memory, damaged files, a tokenizer without BOS and EOS, an encoder.
        """
        model, tokenizer, identity = load_model(config, whole=whole)
        lm = cls(model, tokenizer, name=config.name, layer=config.layer, whole=whole, identity=identity)
        # transformers loads an encoder (BERT) as a causal model too.
        first = lm.residual_stream(torch.tensor([[0, 0], [0, 1]]))[:, 0].float()
        rounding = 16 * torch.finfo(lm.dtype).eps * float(first.abs().max())
        if float((first[0] - first[1]).abs().max()) > rounding:
            fault = "a token changes what was before it, so it is an encoder and no causal language model"
            raise ArtifactError(f"model.name: in {lm.name} {fault}; choose another")
        return lm

    @property
    def can_be_centred(self) -> bool:
        """Whether later blocks and the head do not see the residual stream's mean: LayerNorms take it off."""
        return any(isinstance(module, nn.LayerNorm) for module in self.model.modules())

    def centre(self) -> None:
        """From now on the residual stream after block `layer` is x less its mean over d_in, which leaves the logits as
        they are (TransformerLens's `center_writing_weights`). Raises ArtifactError where norms see the mean."""
        if not self.can_be_centred:
            raise ArtifactError(f"centre: the norms of {self.name} see the mean of the residual stream; leave it out")
        if not self.centred:
            self._block.register_forward_hook(_changing(lambda x: x - x.mean(dim=-1, keepdim=True)))
            self.centred, self.identity = True, f"{self.identity} centred"

    def finite_stream(self, tokens: Tokens) -> Float[Tensor, "context position d_in"]:
        """As `residual_stream`. Raises ArtifactError also where it holds NaN or infinity."""
        residual = self.residual_stream(tokens)
        finite = residual.isfinite().all(dim=-1)
        if not finite.all():
            context, position = (~finite).nonzero()[0].tolist()
            raise not_finite(self, f"context {context}, position {position} of those read together")
        return residual

    @torch.no_grad()
    def residual_stream(self, tokens: Tokens) -> Float[Tensor, "context position d_in"]:
        """The residual stream after block `layer`, in its dtype, and nothing later. Raises as `check_tokens`."""

        def stop(block: nn.Module, inputs: Any, output: Any) -> None:
            raise _Reached(output)

        with self._block.register_forward_hook(stop):
            try:
                self.model.base_model(input_ids=self._ids(tokens), use_cache=False)
            except _Reached as reached:
                self._returns_tuple = isinstance(reached.args[0], tuple)
                return _stream(reached.args[0])
        raise RuntimeError(f"the forward pass of {self.name} never reached block {self.layer}")

    @torch.no_grad()
    def all_residual_streams(self, tokens: Tokens) -> Float[Tensor, "layer context position d_in"]:
        """The residual stream after each block that was kept. Raises as `check_tokens`."""
        found: list[Tensor] = []
        with ExitStack() as stack:
            for block in self._blocks:
                stack.enter_context(block.register_forward_hook(lambda *given: found.append(_stream(given[-1]))))
            self.model.base_model(input_ids=self._ids(tokens), use_cache=False)
        return torch.stack(found)

    def logits(
        self, tokens: Tokens, splice: Callable[[Tensor], Tensor] | None = None
    ) -> Float[Tensor, "context position vocab"]:
        """Next-token logits, in the model's dtype; with `splice`, `splice(residual)` takes the place of the residual
        stream after block `layer`, and gradients flow through it. Raises ArtifactError when the model was cut."""
        self._require_whole()
        if splice is None:
            return self.model(input_ids=self._ids(tokens), use_cache=False).logits

        def spliced(residual: Tensor) -> Tensor:
            found = splice(residual)
            if found.shape != residual.shape:
                raise ValueError(f"splice made {tuple(found.shape)} of a residual stream {tuple(residual.shape)}")
            return found.to(residual.dtype)

        with self._block.register_forward_hook(_changing(spliced)):
            return self.model(input_ids=self._ids(tokens), use_cache=False).logits

    def not_special(self, tokens: Int[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        """The positions that an SAE sees, for tokens on the CPU."""
        return ~torch.isin(tokens, torch.tensor(sorted(self.special_ids)))

    def check_tokens(self, tokens: Tokens | Int[np.ndarray, "context position"]) -> None:
        """Raises ArtifactError for contexts longer than the model has positions, or tokens that it does not know."""
        if self.max_positions is not None and tokens.shape[1] > self.max_positions:
            has = f"{self.max_positions} positions, and a context of {tokens.shape[1]} tokens is to be read"
            fix = "choose another model, or shorter contexts (data.context_length)"
            raise ArtifactError(f"model: {self.name} has {has}; {fix}")
        lowest, highest = int(tokens.min()), int(tokens.max())
        if highest >= self.vocab_size or lowest < 0:
            has = f"embeddings for {self.vocab_size} tokens, and there are tokens {lowest} to {highest}"
            fix = "take the tokenizer that belongs to it, and text without what was added to that"
            raise ArtifactError(f"model: {self.name} has {has}; {fix}")

    def can_resume(self, tokens: Tokens) -> bool:
        """Whether `resume` and `head` give what a whole forward pass gives, as where blocks hand on nothing but the
        residual stream. Tried once, on the first context."""
        if self._resumes is None:
            try:
                resumed = self.head(self.resume(self.residual_stream(tokens[:1])))
            except (TypeError, ValueError, AttributeError, RuntimeError, IndexError, KeyError):
                self._resumes = False  # the family's code asks for something else
            else:
                expected = self.logits(tokens[:1])
                rounding = 16 * torch.finfo(self.dtype).eps * float(expected.abs().max())
                self._resumes = bool((resumed - expected).abs().max() <= rounding)
        return self._resumes

    def resume(self, residual: Float[Tensor, "context position d_in"]) -> Float[Tensor, "context position d_out"]:
        """What the head reads, by the later blocks alone. Raises ArtifactError when the model was cut."""
        self._require_whole()
        residual = residual.to(self.device, self.dtype)
        output = (residual,) if self._returns_tuple else residual  # as this family's blocks return it
        with ExitStack() as stack:
            for block in self._blocks[: self.layer + 1]:
                stack.enter_context(_instead(block, output))
            return self.model.base_model(inputs_embeds=residual, use_cache=False).last_hidden_state

    def head(self, hidden: Float[Tensor, "*position d_out"]) -> Float[Tensor, "*position vocab"]:
        """Logits of what `resume` gives, by the model's code, in its dtype. Raises ArtifactError: the model was cut."""
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        self._require_whole()
        states = hidden.to(self.device, self.dtype).reshape(1, -1, hidden.shape[-1])
        given = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states)
        ids = torch.zeros(states.shape[:2], dtype=torch.long, device=self.device)
        with _instead(self.model.base_model, given):
            logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits.reshape(*hidden.shape[:-1], -1)

    def _require_whole(self) -> None:
        if not self.whole:
            cut = f"{self.name} was cut after layer {self.layer}"
            raise ArtifactError(f"{cut}: load it with whole=True to compute logits")

    def _ids(self, tokens: Tensor) -> Tensor:
        if tokens.device.type == "cpu":  # a GPU would have to be waited for; harvesting has checked them all
            self.check_tokens(tokens)
        return tokens.to(self.device, torch.long)


def _stream(output: Any) -> Tensor:
    """The residual stream in what a block returns."""
    return output[0] if isinstance(output, tuple) else output


def _changing(change: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Any, Any], Any]:
    """A hook that changes the residual stream in what a block returns."""
    return lambda _, __, output: (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


@contextmanager
def _instead(module: nn.Module, output: Any) -> Iterator[None]:
    """Have a module answer with `output`, by an attribute of its own that hides its class's method."""
    module.forward = lambda *_, **__: output
    try:
        yield
    finally:
        del module.forward


def not_finite(lm: LanguageModel, where: str) -> ArtifactError:
    """For activations that are NaN or infinite there."""
    fix = f"it computes in {str(lm.dtype).removeprefix('torch.')}: try another model.dtype"
    return ArtifactError(f"activations: {lm.name} gives NaN or infinity after layer {lm.layer}, {where}; {fix}")


class _Reached(Exception):
    """Ends a forward pass after the block that is read, and carries its output."""


def learned_positions(model: PreTrainedModel) -> int | None:
    """As `LanguageModel.max_positions`."""
    embedding = model.get_input_embeddings()
    learned = any(isinstance(part, nn.Embedding) and part is not embedding for part in model.base_model.modules())
    return model.config.get_text_config().max_position_embeddings if learned else None


def blocks_path(model: Any) -> str | None:
    """The name of the list of the decoder's blocks: the outermost list of the model's depth."""
    depth = model.config.get_text_config().num_hidden_layers
    lists = ((path, part) for path, part in model.named_modules() if isinstance(part, nn.ModuleList))
    return min((path for path, part in lists if len(part) == depth), key=lambda path: path.count("."), default=None)
