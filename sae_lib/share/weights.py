"""Between tensors and an `Autoencoder`: what is read is checked, what is written is what inference uses."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.autoencoders.config import sae_config
from sae_lib.autoencoders.gated import Gated
from sae_lib.autoencoders.jumprelu import JumpReLU
from sae_lib.autoencoders.standard import Standard
from sae_lib.autoencoders.topk import BatchTopK, TopK
from sae_lib.util.errors import ArtifactError

Tensors = dict[str, Tensor]
Form = Literal["standard", "topk", "jumprelu", "gated"]
FORMS: dict[Form, type[Autoencoder]] = {"standard": Standard, "topk": TopK, "jumprelu": JumpReLU, "gated": Gated}
SHAPES = {"W_enc": ("d_in", "d_sae"), "W_dec": ("d_sae", "d_in"), "b_dec": ("d_in",)}  # all others: ("d_sae",)


def read_safetensors(file: Path, library: str) -> Tensors:
    """All tensors of a file, as float32. Raises ArtifactError when it is missing or damaged."""
    if not file.is_file():
        raise ArtifactError(f"sae: {file} is missing; {library} saves it beside its configuration")
    file.open("rb").close()  # safetensors says of a file that may not be read that it is not there
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"sae: {file} is damaged and cannot be read ({error}); fetch it again") from error
    return floats(tensors, file)


def floats(tensors: Tensors, file: Path) -> Tensors:
    """Weights as float32. Raises ArtifactError: some are no dense floating-point numbers; complex ones would lose a
    part, and what whole ones were divided by is elsewhere."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            kind = str(tensor.dtype).removeprefix("torch.") if tensor.layout == torch.strided else "sparse"
            raise ArtifactError(f"sae: {name} of {file} is {kind}; save it as dense floating-point numbers (float32)")
    return {name: tensor.float() for name, tensor in tensors.items()}


def check_keys(tensors: Mapping[str, Any], wanted: Collection[str], file: Path, what: str) -> None:
    """Raises ArtifactError when a file's tensors are not exactly those that `what` has."""
    missing, unknown = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    if missing or unknown:
        faults = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"also holds {', '.join(unknown)}"] * bool(unknown)
        raise ArtifactError(f"sae: {file} {' and '.join(faults)}; a {what} SAE has {', '.join(sorted(wanted))}")


def check_shapes(tensors: Tensors, file: Path) -> None:
    """Raises ArtifactError when tensors of this package's names do not fit W_enc `[d_in, d_sae]`, or hold NaN."""
    shape = list(tensors["W_enc"].shape)
    if len(shape) != 2 or 0 in shape:
        raise ArtifactError(f"sae: {file} has an encoder of shape {shape}; it must have two dimensions, none of them 0")
    sizes = dict(zip(("d_in", "d_sae"), shape, strict=True))
    for name, tensor in tensors.items():
        expected = [sizes[axis] for axis in SHAPES.get(name, ("d_sae",))]
        # One threshold may stand for all latents.
        if list(tensor.shape) != expected and not (name == "threshold" and tensor.dim() == 0):
            what = f"{name} of shape {list(tensor.shape)}, W_enc {shape} asks for {expected}"
            raise ArtifactError(f"sae: {file} has {what}; the file was written by something else or is damaged")
        if not tensor.isfinite().all():
            raise ArtifactError(f"sae: {name} of {file} holds NaN or infinite values; take an earlier checkpoint")


def assemble(
    architecture: str, tensors: Tensors, file: Path, *, subtract_b_dec: bool, k: int | None = None
) -> Autoencoder:
    """An SAE with these weights, in this package's layout and names, as float32; a threshold may be one number for all
    latents. Raises ArtifactError for shapes that do not fit together, NaN or infinite weights, k out of range."""
    check_shapes(tensors, file)
    d_in, d_sae = tensors["W_enc"].shape
    if k is not None and not 0 < k <= d_sae:
        raise ArtifactError(f"sae: {file} gives k = {k}, which must lie in 1 .. d_sae = {d_sae}")
    # Only training aims at an L0; every JumpReLU configuration must have one.
    sparsity: dict[str, dict[str, Any]] = {"topk": {"k": k}, "jumprelu": {"target_l0": d_sae}}
    settings = {"architecture": architecture, "d_sae": d_sae, "subtract_b_dec": subtract_b_dec}
    off = {"normalize_inputs": False, "unit_norm_decoder": False}  # what only training uses
    sae = build_autoencoder(sae_config(settings | off | sparsity.get(architecture, {})), d_in)
    sae.load_state_dict({name: tensors[name].expand(own.shape) for name, own in sae.state_dict().items()})
    return sae


class InferenceForm(NamedTuple):
    """The four forms that every SAE of this package has at inference, in float32 on the CPU.

    With u = x W_enc, or (x - b_dec) W_enc where `subtract_b_dec`:

        standard    f = ReLU(u + b_enc)
        topk        the k largest of ReLU(u + b_enc)
        jumprelu    f = ReLU(u + b_enc) where u + b_enc > threshold, else 0
        gated       f = ReLU(exp(r_mag) u + b_mag) where u + b_gate > 0, else 0

    `tensors`: W_enc `[d_in, d_sae]`, W_dec `[d_sae, d_in]`, b_dec `[d_in]`, and those that the form names, `[d_sae]`.
    """

    architecture: Form
    tensors: Tensors
    subtract_b_dec: bool
    k: int | None = None

    def centred(self, subtract_b_dec: bool) -> "InferenceForm":
        """The same SAE with b_dec taken off its input, or not: what that changes goes into the encoder's biases, in
        float64, since b_dec is large beside them where the residual stream has a large mean."""
        if subtract_b_dec == self.subtract_b_dec:
            return self
        sign = 1.0 if subtract_b_dec else -1.0
        shift = sign * (self.tensors["b_dec"].double() @ self.tensors["W_enc"].double())
        moved = {}
        for name, gain in (("b_enc", None), ("b_gate", None), ("b_mag", "r_mag")):
            if name in self.tensors:
                scale = self.tensors[gain].double().exp() if gain else 1.0
                moved[name] = (self.tensors[name].double() + scale * shift).float()
        return self._replace(tensors=self.tensors | moved, subtract_b_dec=subtract_b_dec)


def inference_form(sae: Autoencoder) -> InferenceForm:
    """As other libraries hold it: BatchTopK and Matryoshka as JumpReLU. Raises ArtifactError: no such form."""
    if not sae.exportable:
        known = f"{sae.cfg.architecture} encodes in a way that no other library's format holds"
        raise ArtifactError(f"sae: {known}; it stays a run folder of this project")
    tensors = {name: tensor.detach().cpu().float().contiguous() for name, tensor in sae.state_dict().items()}
    if isinstance(sae, BatchTopK):
        tensors["threshold"] = strict_threshold(tensors["threshold"]).expand(sae.d_sae).contiguous()
        return InferenceForm("jumprelu", tensors, sae.cfg.subtract_b_dec)
    form = next(name for name, kind in FORMS.items() if isinstance(sae, kind))
    return InferenceForm(form, tensors, sae.cfg.subtract_b_dec, sae.cfg.get("k"))


def strict_threshold(threshold: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The t for which z > t says the same as z >= threshold, for every float32 z; 0 stays 0, which keeps zeros more."""
    below = torch.nextafter(threshold, torch.full_like(threshold, -torch.inf))
    return torch.where(threshold == 0, threshold, below)
