"""What the core metrics need from the language model: computed once for a model, layer and text, kept on disk.

An SAE changes nothing before its layer. So the residual stream of the held-out contexts is kept, and evaluating an SAE
computes the later blocks only. The clean model's last hidden states are kept as well, and its distributions where they
fit into memory.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.stored_reference import kept_reference
from sae_lib.util.errors import ArtifactError
from sae_lib.util.keys import Stage

CORE_REFERENCE = Stage("core reference", 2)


class Distribution(NamedTuple):
    """Next-token distributions p of the clean model, with the sums that KL needs."""

    p: Float[Tensor, "position vocab"]
    total: Float[Tensor, " position"]
    """sum_v p_v: 1 up to rounding."""
    negentropy: Float[Tensor, " position"]
    """sum_v p_v log p_v."""


def distribution(logits: Float[Tensor, "position vocab"]) -> Distribution:
    """softmax of the logits, in float32."""
    log_p = logits.float().log_softmax(dim=1)
    p = log_p.exp()
    return Distribution(p, p.sum(dim=1), torch.linalg.vecdot(p, log_p))


def loss_sums(
    logits: Float[Tensor, "position vocab"], following: Int[Tensor, " position"], clean: Distribution | None = None
) -> Float[Tensor, "3"]:
    """Sums over positions, in nats, in float64: CE, KL, and how many positions have a next token, `following`; -1 is
    none, and such a position counts for KL only. Without the clean model's distributions KL is 0.

    With z the changed logits, y the next token and L = logsumexp(z):

        CE = L - z_y                KL(p || softmax(z)) = sum_v p_v log p_v - sum_v p_v z_v + L sum_v p_v
    """
    z = logits.float()
    normaliser = z.logsumexp(dim=1).double()
    of_target, predicts = z.gather(1, following.clamp(min=0)[:, None])[:, 0], following >= 0
    ce = ((normaliser - of_target) * predicts).sum()
    kl = torch.zeros_like(ce)
    if clean is not None:
        kl = (clean.negentropy - torch.linalg.vecdot(clean.p, z).double() + normaliser * clean.total).sum()
    return torch.stack([ce, kl, predicts.sum().double()])


# Puts something in place of some rows of the residual stream, all contexts' positions in one.
Splice = Callable[[Float[Tensor, "row d_in"], Int[Tensor, " kept"]], Float[Tensor, "row d_in"]]

# Logits are computed for so many numbers at a time, what a core's cache holds or a GPU is busy with; but for fewer than
# so many rows the head's weights would be read from memory more often than they are used.
_CHUNK_ELEMENTS = {"cpu": 2**19, "cuda": 2**24}
_LEAST_ROWS = 64
# Residual stream and last hidden states are kept up to this size together, in CPU memory and on disk.
_STATE_BYTES = 2**32
# The clean distributions are kept up to this size, on the model's device; beyond it the head is run again.
_DISTRIBUTION_BYTES = 2**30


@dataclass(frozen=True)
class CoreReference:
    """Held-out contexts and what they give without any SAE, in nats per token: CE of the next token, mean over
    positions whose own token is not special; KL(clean || changed) over the same positions and the last one."""

    tokens: Int[Tensor, "context position"]
    kept: Bool[Tensor, "context position"]
    """Positions that are not special."""
    mean: Float[Tensor, " d_in"]
    """Mean of the residual stream over the kept positions, float64, on the CPU."""
    variance: float
    """Mean of ||x - mean||^2 over the kept positions."""
    ce_clean: float
    ce_zero: float
    """CE with the residual stream set to zero at the kept positions."""
    ce_mean: float
    """CE with the residual stream set to its mean there."""
    kl_zero: float
    residual: Float[Tensor, "context position d_in"] | None = None
    """In the model's dtype, on the CPU. None where it is too large, or where the model's later blocks cannot run by
    themselves: an SAE then costs whole forward passes."""
    hidden: Float[Tensor, "kept d_out"] | None = None
    """What the clean model's head reads at the kept positions. None where `residual` is."""

    @cached_property
    def in_memory(self) -> dict[str, Distribution]:
        """The clean distributions of all kept positions, once an SAE has needed them in this process."""
        return {}


@torch.no_grad()
def build_core_reference(
    lm: LanguageModel, tokens: Int[Tensor, "context position"], batch: int = 16, folder: Path | str | None = None
) -> CoreReference:
    """Clean, zero-ablated and mean-ablated losses, the residual stream and its moments on held-out contexts.

    The ablations replace the same positions as an SAE's reconstruction does, so an SAE that outputs zeros scores
    exactly 0. (SAEBench sets special positions to zero as well, in this run only.)

    `tokens`: contexts with BOS in front; `batch`: contexts in one forward pass; `folder`: where it is kept, if at all.

    Raises ArtifactError: every position is special, or none is followed by another.
    """
    tokens = tokens.cpu().long()
    kept = lm.not_special(tokens)
    if not kept[:, :-1].any():
        raise ArtifactError("corpus: the held-out contexts hold special tokens only; give it more text")
    if folder is None:
        return _compute(lm, tokens, kept, batch)
    made_from = {"lm": lm.identity, "tokens": [*tokens.shape, hashlib.sha256(tokens.numpy().tobytes()).hexdigest()]}
    return kept_reference(folder, CORE_REFERENCE, made_from, CoreReference, lambda: _compute(lm, tokens, kept, batch))


def _compute(lm: LanguageModel, tokens: Tensor, kept: Tensor, batch: int) -> CoreReference:
    size = 2 * tokens.numel() * lm.d_in * lm.dtype.itemsize
    keep = size <= _STATE_BYTES and lm.can_resume(tokens)
    total, squares = torch.zeros(lm.d_in, dtype=torch.float64), 0.0
    residuals, hidden = [], []
    for part, mask in zip(tokens.split(batch), kept.split(batch), strict=True):
        residual = lm.finite_stream(part)
        rows = residual.cpu()[mask].double()
        total += rows.sum(dim=0)
        squares += rows.pow(2).sum().item()
        if keep:
            residuals.append(residual.cpu())
            hidden.append(lm.resume(residual).cpu()[mask])
    mean = total / kept.sum()
    variance = squares / int(kept.sum()) - mean.pow(2).sum().item()
    states = (torch.cat(residuals), torch.cat(hidden)) if keep else (None, None)
    bare = CoreReference(tokens, kept, mean, variance, 0.0, 0.0, 0.0, 0.0, *states)
    clean, _ = losses(lm, bare, None, batch)
    zero, kl = losses(lm, bare, lambda rows, kept: rows.index_fill(0, kept, 0), batch)
    constant, _ = losses(
        lm, bare, lambda rows, kept: rows.index_copy(0, kept, mean.to(rows).expand(len(kept), -1)), batch
    )
    reference = replace(bare, ce_clean=clean, ce_zero=zero, ce_mean=constant, kl_zero=kl)
    reference.in_memory.update(bare.in_memory)
    return reference


@torch.no_grad()
def losses(lm: LanguageModel, reference: CoreReference, splice: Splice | None, batch: int) -> tuple[float, float]:
    """CE and KL at the kept positions with the residual stream replaced by what `splice` makes of each batch's, in
    order, on the model's device; without `splice` CE alone, of the clean model."""
    sums = torch.zeros(3, dtype=torch.float64, device=lm.device)
    rows = max(_LEAST_ROWS, _CHUNK_ELEMENTS[lm.device.type] // lm.vocab_size)
    in_memory = _distributions_in_memory(lm, reference, rows) if splice is not None else None
    before = 0
    for start in range(0, len(reference.tokens), batch):
        part = slice(start, start + batch)
        kept = reference.kept[part]
        at_kept = kept.flatten().nonzero()[:, 0].to(lm.device)
        following = F.pad(reference.tokens[part, 1:], (0, 1), value=-1)[kept].to(lm.device)
        positions = slice(before, before + len(following))
        logits = _logits(lm, reference, part, positions, at_kept, splice)
        again = _logits(lm, reference, part, positions, at_kept, None) if splice and in_memory is None else None
        for at in range(0, len(following), rows):  # never waits for a GPU
            here, clean = slice(at, at + rows), None
            if in_memory is not None:
                clean = Distribution(*(known[positions][here] for known in in_memory))
            elif again is not None:
                clean = distribution(again(here))
            sums += loss_sums(logits(here), following[here], clean)
        before = positions.stop
    ce, kl, predictions = sums.tolist()
    return ce / predictions, kl / before


def _logits(
    lm: LanguageModel, reference: CoreReference, part: slice, positions: slice, at_kept: Tensor, splice: Splice | None
) -> Callable[[slice], Tensor]:
    """Logits at some of a batch's kept positions; `positions` are its own among all that are kept."""

    def spliced(residual: Tensor) -> Tensor:
        return residual if splice is None else splice(residual.flatten(0, 1), at_kept).view_as(residual)

    if reference.residual is None or reference.hidden is None:
        found = lm.logits(reference.tokens[part], spliced if splice else None).flatten(0, 1)[at_kept]
        return lambda here: found[here]
    if splice is None:
        hidden = reference.hidden[positions].to(lm.device)
    else:
        hidden = lm.resume(spliced(reference.residual[part].to(lm.device))).flatten(0, 1)[at_kept]
    return lambda here: lm.head(hidden[here])


def _distributions_in_memory(lm: LanguageModel, reference: CoreReference, rows: int) -> Distribution | None:
    """The clean distributions of every kept position, or None where they are too large."""
    if reference.hidden is None or len(reference.hidden) * lm.vocab_size * 4 > _DISTRIBUTION_BYTES:
        return None
    if "clean" not in reference.in_memory:
        n, vocab = len(reference.hidden), lm.head(reference.hidden[:1]).shape[1]
        known = Distribution(*(torch.empty(n, *width, device=lm.device) for width in ((vocab,), (), ())))
        for start in range(0, n, rows):
            chunk = distribution(lm.head(reference.hidden[start : start + rows]))
            for stored, computed in zip(known, chunk, strict=True):
                stored[start : start + rows] = computed
        reference.in_memory["clean"] = known
    return reference.in_memory["clean"]
