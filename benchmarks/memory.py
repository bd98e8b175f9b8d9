"""Peak host memory of tokenising, harvesting and training, at two token budgets: does it grow with the budget?

    python -m benchmarks.memory

The packaged language model at the pocket profile's sizes, on the Python standard library's sources; each stage is a
process of its own. Training is measured on the store as it lies on the disk, mapped, and with its rows read into
memory, which is done where they fit.

A process's own memory (resident, without pages of mapped files) is what it has to have. Mapped pages of the store are
shown beside it: they grow with what is read, and the system takes them back when it needs them.

Writes `benchmarks/results/memory.json` and `benchmarks/figures/memory.png`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml
from matplotlib.figure import Figure

from benchmarks.output import arguments, save, table
from sae_lib.profiles.profile import PROFILES
from sae_lib.util.paths import OUTPUT_VARIABLE, ROOT

TRAIN = """
from sae_lib.training.run import train_sae
spec = next(spec for spec in plan_runs(e.profile, groups=["main"]) if spec.method == "temporal_sae")
train_sae(spec.config, store, e.profile.data, e.profile.training, 0, e.paths.runs / "memory" / {name!r})
"""
STAGES = {
    "tokenise": "e.build_tokens(e.language_model(whole=False).tokenizer)",
    "harvest": "e.harvest(e.language_model(whole=False))",
    "train": "store = e.store()" + TRAIN.format(name="mapped"),
    "train, rows in memory": "store = e.store(); store.preload()" + TRAIN.format(name="resident"),
}
SCRIPT = """
from sae_lib.profiles.runs import plan_runs
from sae_lib.study.experiment import Experiment
e = Experiment.open({!r})
{}
"""
DOCUMENT = 20_000  # characters
CHARACTERS_PER_TOKEN = 6  # more than the packaged tokenizer needs
BETWEEN_SAMPLES = 0.05
MB = 1e6


def write_text(folder: Path, tokens: int) -> Path:
    """Documents for so many tokens: the standard library's sources in pieces, numbered, again from the start where they
    are too few."""
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = sorted(path for path in library.rglob("*.py") if "site-packages" not in path.parts)
    written, path, turn = 0, folder / "text.jsonl", 0
    with open(path, "w", encoding="utf-8") as file:
        while written < tokens * CHARACTERS_PER_TOKEN:
            for source in sources:
                text = source.read_text(encoding="utf-8", errors="replace")
                for start in range(0, len(text), DOCUMENT):
                    document = f"{turn} {text[start : start + DOCUMENT]}"
                    file.write(json.dumps({"text": document}) + "\n")
                    written += len(document)
                if written >= tokens * CHARACTERS_PER_TOKEN:
                    break
            turn += 1
    return path


def write_profile(folder: Path, text: Path, tokens: int, steps: int) -> Path:
    """The pocket profile on this text, with so many tokens in the store on disk and one short training run."""
    content = yaml.safe_load((PROFILES / "pocket.yaml").read_text(encoding="utf-8"))
    content |= {"name": f"memory-{tokens}", "corpus": {"source": "files", "files": [str(text)]}}
    content["data"] |= {"train_tokens": tokens, "store": "disk"}
    content["training"] |= {"steps": steps, "schedule_scale": steps / 5000, "workers": 1, "checkpoint_every": steps}
    path = folder / f"{content['name']}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def watch(command: Sequence[str], environment: dict[str, str]) -> dict[str, float]:
    """Peaks over a command's run of its own memory and of all that is resident, in bytes, child processes included."""
    peak = {"own": 0.0, "resident": 0.0}
    with subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            found = [memory(each) for each in family(process.pid)]
            for name in peak:
                peak[name] = max(peak[name], sum(each[name] for each in found))
            time.sleep(BETWEEN_SAMPLES)
        errors = process.stderr.read() if process.stderr else ""
    if process.returncode:
        raise SystemExit(f"{command[-1]}\nfailed:\n{errors}")
    return peak


def family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return []


def memory(process: psutil.Process) -> dict[str, float]:
    """Bytes resident, and those of them that are no page of a file. (Without Linux, both are all that is resident.)"""
    try:
        info = process.memory_info()
    except psutil.Error:  # it has ended
        return {"own": 0.0, "resident": 0.0}
    return {"own": float(info.rss - getattr(info, "shared", 0)), "resident": float(info.rss)}


def measure(budgets: Sequence[int], steps: int) -> list[dict[str, Any]]:
    """Peaks of every stage at every budget."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = write_text(folder, max(budgets))
        environment = os.environ | {OUTPUT_VARIABLE: str(folder / "output"), "HF_HOME": str(folder / "hub")}
        for tokens in budgets:
            profile = write_profile(folder, text, tokens, steps)
            for stage, call in STAGES.items():
                peak = watch([sys.executable, "-c", SCRIPT.format(str(profile), call)], environment)
                rows.append({"stage": stage, "tokens": tokens, **peak})
    return rows


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Own and resident memory over the token budget, a line for each stage."""
    figure = Figure(figsize=(7.0, 2.8), layout="constrained")
    for axes, name, title in zip(
        figure.subplots(1, 2, sharey=True), ("own", "resident"), ("own memory", "with mapped files"), strict=True
    ):
        for stage in STAGES:
            line = [row for row in rows if row["stage"] == stage]
            axes.plot([row["tokens"] / 1e6 for row in line], [row[name] / MB for row in line], marker="o", label=stage)
        axes.set(title=title, xlabel="token budget (million)")
    figure.axes[0].set(ylabel="peak (MB)", ylim=(0, None))  # shared, so only once all is drawn
    figure.axes[0].legend(frameon=False)
    return figure


def summary(rows: list[dict[str, Any]]) -> str:
    """The peaks as a table, and the growth of each stage's own memory with the store's."""
    cells = [[r["stage"], f"{r['tokens']:,}", f"{r['own'] / MB:.0f}", f"{r['resident'] / MB:.0f}"] for r in rows]
    lines = [table(["stage", "tokens", "own, MB", "with mapped files, MB"], cells), ""]
    for stage in STAGES:
        few, *_, many = sorted((row for row in rows if row["stage"] == stage), key=lambda row: row["tokens"])
        grown = (many["own"] - few["own"]) / (many["tokens"] - few["tokens"])
        lines.append(f"{stage}: {grown:+.1f} bytes of own memory for each token more; a row of the store has 256")
    return "\n".join(lines)


def main() -> None:
    parser = arguments("peak host memory of tokenising, harvesting and training at two token budgets")
    parser.add_argument("--tokens", type=int, nargs=2, default=[500_000, 2_000_000], help="the two budgets")
    parser.add_argument("--steps", type=int, default=200, help="training steps at either budget")
    asked = parser.parse_args()
    rows = measure(sorted(asked.tokens), asked.steps)
    save(asked.output, "memory", {"steps": asked.steps, "peaks_in_bytes": rows}, draw(rows), summary(rows))


if __name__ == "__main__":
    main()
