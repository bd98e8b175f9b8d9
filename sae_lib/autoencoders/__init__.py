"""The SAE variants, each beside its configuration and its methods; `build` makes and loads them. A file that is added
here is found. The order of import is that of every table."""

from importlib import import_module
from pkgutil import iter_modules

_FIRST = ("standard", "gated", "topk", "matryoshka", "jumprelu")
for _name in (*_FIRST, *(module.name for module in iter_modules(__path__))):
    import_module(f"{__name__}.{_name}")
