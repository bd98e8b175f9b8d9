"""The SAE variants, one per file with its configuration and its methods; `build` makes and loads them.

A file that is added here is found. The order of import is that of every table.
"""

from importlib import import_module
from pkgutil import iter_modules

# isort: off
from sae_lib.autoencoders import standard, gated, topk, matryoshka, jumprelu
# isort: on

__all__ = ["gated", "jumprelu", "matryoshka", "standard", "topk"]

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)
