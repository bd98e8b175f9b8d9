"""The commands, in one place: `python -m sae_lib <command> [options]`.

run plan verify accept clean    the notebooks of a profile (`study/pipeline.py`)
evaluate export browser         SAEs of others and of ours (`share/`)
pocket-lm                       train the packaged language model (`study/pocket_lm.py`)
"""

import runpy
import sys

PIPELINE = ("run", "plan", "verify", "accept", "clean")
MODULES = {
    "evaluate": "sae_lib.share.evaluate",
    "export": "sae_lib.share.export",
    "browser": "sae_lib.share.browser",
    "pocket-lm": "sae_lib.study.pocket_lm",
}


def main(arguments: list[str]) -> int:
    """Pass the arguments on to the module that has the command."""
    command, rest = (arguments or [""])[0], arguments[1:]
    if command in PIPELINE:
        module, rest = "sae_lib.study.pipeline", arguments
    elif command in MODULES:
        module = MODULES[command]
    else:
        print(f"usage: python -m sae_lib {'|'.join((*PIPELINE, *MODULES))} [options]", file=sys.stderr)
        return 2
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
