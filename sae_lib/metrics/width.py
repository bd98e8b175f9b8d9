"""One check for all metrics: an SAE as wide as what it is to read."""

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.errors import ArtifactError


def require_width(
    sae: Autoencoder, width: int, holder: str = "the reference's residual stream has", name: str = "sae"
) -> None:
    """Raises ArtifactError when the SAE's d_in is not `width`, that of what `holder` names."""
    if sae.d_in != width:
        raise ArtifactError(
            f"{name}: d_in is {sae.d_in}, {holder} {width}; evaluate it on the model and layer it was trained on"
        )
