"""The scores of the artifact, in the order in which they are computed: importing this registers them."""

# isort: off
from sae_lib.metrics import reconstruction
from sae_lib.metrics.absorption import score as absorption
from sae_lib.metrics.absorption import null as null_absorption
from sae_lib.metrics.stability import score as stability
from sae_lib.metrics.probing import score as probing
from sae_lib.metrics import interpretation
from sae_lib.metrics.registry import SCORES

__all__ = ["SCORES", "absorption", "interpretation", "null_absorption", "probing", "reconstruction", "stability"]
