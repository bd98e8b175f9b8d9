"""One command line: `python -m sae_lib COMMAND`; `--help` lists the commands, `COMMAND --help` the options of one.

What computes is imported when its command runs: help, and a run with nothing to do, start without PyTorch.
"""

import argparse
import errno
import os
import select
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from sae_lib.util.errors import ArtifactError, shortened
from sae_lib.util.memory import require_address_space

STDOUT = 1
INTERRUPTED = 130
KEPT = {"run", "study", "train", "pocket-lm", "evaluate"}  # what they have finished when they are interrupted

# A path as a user gave it, or a place where it lies, that the system does not open.
REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP}

Options = argparse.Namespace


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Errors that the user can mend are one line; exit codes 0, 1, 2 (usage), or 130 (interrupted)."""
    options = parser().parse_args(arguments)
    warnings.formatwarning = lambda message, *_, **__: f"note: {message}\n"  # without a line of our code
    # `kill` ends a command as Ctrl-C does: what it started is stopped and nothing half-written stays.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _check(options)
        code = _do(options)
        print(end="", flush=True)
        return code
    except ArtifactError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        poll = select.poll()
        poll.register(STDOUT, 0)  # a broken pipe is told whatever is asked for: what reads is gone, as in `| head`
        if not poll.poll(0):
            raise
        return _end_of_output()
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:  # files say so themselves, with their folder
            print("error: disk full while printing; make room, or send the output elsewhere", file=sys.stderr)
            return _end_of_output()
        if error.errno not in REFUSALS or error.filename is None:
            raise
        told = f"{shortened(str(error.filename), 200)}: {error.strerror}; check this path and its permissions"
        print(f"error: {told}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = "; what was finished is kept and the same command goes on from there"
        print(f"interrupted{kept if options.command in KEPT else ''}", file=sys.stderr)
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    top = argparse.ArgumentParser(prog="python -m sae_lib", description="Sparse autoencoders with temporal mechanisms.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    profile = argparse.ArgumentParser(add_help=False)
    named = "a name, or the path of a YAML file (default: pocket)"
    profile.add_argument("--profile", default="pocket", help=named)

    source = argparse.ArgumentParser(add_help=False)  # which model and layer, and text
    add = source.add_argument
    add("--model", required=True, help="'pocket', a local folder, a GGUF file or a hub id")
    add("--layer", type=int, help="block after which the SAE reads, from 0 (default: what its own files name)")
    add("--revision", help="branch, tag or commit of a hub model")
    add("--files", nargs="+", default=[], metavar="FILE", help="text: .jsonl, .parquet or .txt")
    add("--text-field", default="text", help="column of the text in those files")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--dtype", default="float32", help="of the language model: float32, bfloat16 or float16")

    def command(name: str, what: str, *shared: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.", parents=shared)

    run = command("run", "run the notebooks of a profile that are not up to date", profile)
    run.add_argument("--only", metavar="NN", help="run one notebook, such as 03")
    command("plan", "say what `run` would do: time, disk, memory, and what stands in the way", profile)
    what = "print the claims table; exit code 1 where a verdict is not the committed one"
    command("verify", what, profile).add_argument(
        "--long", action="store_true", help="each claim with all its evidence"
    )
    command("accept", "make the verdicts of these results the ones that `verify` compares with", profile)
    command("clean", "remove what a profile made under the output folder", profile)

    what = "go on with a study of many hours for a while; what is finished is kept as rows"
    only = "how long (0: only the tables and figures of what is known)"
    command("study", what, profile).add_argument("--hours", type=float, default=1.0, help=only)

    add = command("train", "train one SAE by its method's name on a model and text of yours", source).add_argument
    add("method", help="such as matryoshka_4")
    add("--name", required=True, help="of its folder under the output folder")
    add("--tokens", type=int, default=4_096_000, help="tokens that are shown, once each")
    add("--d-sae", type=int, help="latents (default: 8 times the residual stream's width)")
    add("--sparsity", type=float, help="k, L0 or L1 coefficient, whichever the method is told (L0: 32)")
    add("--seed", type=int, default=42)

    add = command("evaluate", "measure an SAE of this package or of others on a language model", source).add_argument
    add("folder", help="folder of the SAE")
    add("--context-length", type=int, default=128, help="tokens in a context")
    add("--max-words", type=int, help="words of the absorption metric (default: the whole vocabulary)")
    add("--cache", help="folder for what depends on the model only")
    add("--any-origin", action="store_true", help="go on even where the SAE's files name another model or layer")
    add("--centre", action="store_true", help="take the residual stream's mean off, as TransformerLens's centring does")
    scores = "any of core, absorption, null_absorption, probing, stability, interpretation"
    add("--metrics", nargs="+", default=["core", "absorption"], help=scores)
    add("--contexts", type=int, default=64, help="contexts of held-out text")
    add("--judge", metavar="URL", help="OpenAI-compatible endpoint that interprets latents too")
    add("--judge-model", default="default", help="what that endpoint calls its model")
    add("--json", type=_path, metavar="FILE", help="write summary, letters, tasks and notes here")

    add = command("export", "write a trained SAE, with a README, as other libraries load it").add_argument
    add("run", help="folder of one run: build/<profile>/runs/<run>")
    add("--to", default="both", metavar="FORMAT", help="saelens, dictionary_learning or both (default)")
    add("--out", required=True, type=_path, metavar="FOLDER", help="new folder for the files")

    pocket = command("pocket-lm", "train the packaged language model again; goes on where it stopped")
    pocket.add_argument("--output", type=_path, help="where the finished model goes (default: into the package)")
    command("readme", "fill the tables of README.md from the files that `make paper` made")
    environment = command("environment", "compare the installed packages with requirements.lock")
    environment.add_argument("action", choices=("check", "link"), help="say what differs, or make sae_lib importable")
    command("rank", "be one rank of a distributed run, under torchrun --virtual-local-rank", profile)
    return top


def _check(options: Options) -> None:
    """Refuse what an unset variable of a shell leaves behind ('' as a path would be the folder here), and settings that
    libraries stumble over: transformers reads docstrings, Numba stops with a traceback when it is imported."""
    for name, value in vars(options).items():
        if value == "" or (isinstance(value, list) and "" in value):
            raise ArtifactError(f"{name.replace('_', '-')}: nothing is given (''); give a value, or leave it out")
    require_address_space()
    if sys.flags.optimize > 1:
        told = "2 (python -OO) takes the docstrings away, which transformers reads; unset it"
        raise ArtifactError(f"PYTHONOPTIMIZE: {told}")
    threads = os.environ.get("NUMBA_NUM_THREADS", "1")
    if not (threads.isdecimal() and int(threads)):
        told = f"'{shortened(threads)}' is no number of threads; give 1 or more, or unset it"
        raise ArtifactError(f"NUMBA_NUM_THREADS: {told}")


def _end_of_output() -> int:
    """Nothing more is printed, also of what is still held back."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
    return 1


def _path(value: str) -> Path | str:
    return value and Path(value)


def _do(options: Options) -> int:
    """Run the command; returns its exit code."""
    match options.command:
        case "run" | "plan" | "clean" | "verify" | "accept":
            return _of_notebooks(options)
        case "study":
            from sae_lib.study.experiment import Experiment
            from sae_lib.study.sitting import sit
            from sae_lib.util.paths import shown

            experiment = Experiment.open(options.profile)
            rest = "the study is complete" if sit(experiment, options.hours) else "the same command goes on from there"
            print(f"rows, tables and figures are in {shown(experiment.paths.figures)}; {rest}")
        case "train":
            from sae_lib.study.train_one import train_one
            from sae_lib.util.paths import shown

            if options.layer is None:
                raise ArtifactError("--layer: say after which block, counted from 0, the SAE is to read")
            folder = shown(train_one(**{name: value for name, value in vars(options).items() if name != "command"}))
            print(f"{folder}; measure it with: python -m sae_lib evaluate {folder} --model {options.model}")
        case "evaluate":
            _evaluate(options)
        case "export":
            from sae_lib.share.export import export_run

            export_run(options.run, options.to, options.out)
            print(f"wrote {options.out}")
        case "pocket-lm":
            from sae_lib.study.pocket_lm import make_pocket_lm

            make_pocket_lm(options.output)
        case "readme":
            from sae_lib.report.tables.write import fill_readme

            fill_readme()
        case "environment":
            from sae_lib.util.environment import differences, link

            if options.action == "link":
                link()
            else:
                found = differences()
                print("\n".join(found) or "every pin of requirements.lock is installed")
                return 1 if found else 0
        case "rank":
            from sae_lib.study.distributed import be_a_rank

            be_a_rank(options.profile)
    return 0


def _of_notebooks(options: Options) -> int:
    from sae_lib.profiles.profile import load_profile
    from sae_lib.study import pipeline
    from sae_lib.util.paths import NOTEBOOKS, Paths, shown, verdicts_file

    profile, named = load_profile(options.profile), Path(options.profile)
    results, verdicts = Paths(profile.name).known_results, verdicts_file(profile.name)
    match options.command:
        case "plan":
            return pipeline.plan_command(profile, NOTEBOOKS)
        case "clean":
            return pipeline.clean_command(profile)
        case "run":
            source = str(named.resolve()) if named.is_file() else options.profile
            return pipeline.run_command(profile, {"profile": source}, NOTEBOOKS, options.only)
        case "verify":
            from sae_lib.report.claims.ledger import verify

            return int(verify(profile, results, verdicts, long=options.long))
    from sae_lib.report.claims.ledger import evaluate_claims, write_verdicts
    from sae_lib.report.results import Results

    write_verdicts(evaluate_claims(profile, Results.load(results)), profile, verdicts)
    print(f"wrote {shown(verdicts)}; commit it with the results it stands for")
    return 0


def _evaluate(options: Options) -> None:
    from sae_lib.metrics.absorption.config import AbsorptionConfig
    from sae_lib.metrics.interpretation import InterpretationConfig
    from sae_lib.share.evaluate import default_settings, evaluate_sae
    from sae_lib.util.files import check_writable, write_json
    from sae_lib.util.paths import output_folder

    output = options.json
    if output is not None:  # refuse what cannot be written before the work for it
        output_folder(output.parent, "--json")
        try:
            output = Path(os.path.realpath(output))  # a link stays one, as /dev/stdout is
            taken = output.exists() and not output.is_file()
        except OSError as error:
            raise ArtifactError(f"--json: no file can have that name ({error.strerror})") from None
        if taken:
            what = "a folder" if output.is_dir() else "a device or a pipe"
            raise ArtifactError(f"--json: {options.json} is {what}; name a file")
        check_writable(output.parent, "--json")
    if options.max_words is not None and options.max_words < 1:
        raise ArtifactError(f"--max-words {options.max_words}: must be 1 or more")
    sections = {
        "absorption": AbsorptionConfig(max_words=options.max_words),
        "interpretation": InterpretationConfig(judge=options.judge, judge_model=options.judge_model),
    }
    settings = default_settings().model_copy(update=sections)
    own = ("command", "folder", "model", "layer", "json", "max_words", "judge", "judge_model")
    given = {name: value for name, value in vars(options).items() if name not in own}
    result = evaluate_sae(options.folder, options.model, options.layer, settings=settings, **given)
    if output is not None:
        write_json(output, result.as_json())
    print(result.as_text())


if __name__ == "__main__":
    sys.exit(main())
