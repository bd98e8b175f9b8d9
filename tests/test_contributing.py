"""The worked example of CONTRIBUTING.md runs as it stands there, and reaches the tables and figures."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from sae_lib.util.paths import ROOT

LONGEST = 40

# In a process of its own, because what the example registers would stay. Numbers of tables are the standard SAE's.
THROUGH = """
import sys, yaml
from pathlib import Path

import pandas as pd
import torch

exec(compile(Path(sys.argv[1], "example.py").read_text(), "example.py", "exec"))

from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.autoencoders.config import sae_config
from sae_lib.profiles.profile import PROFILES, load_profile
from sae_lib.profiles.runs import plan_runs
from sae_lib.report.figures.sweep import pareto_figure
from sae_lib.report.tables.main import main_table
from sae_lib.training.trainer import Trainer
from tests.report import synthetic
from tests.tiny_training import DATA, make_step, tiny_config, tiny_store, tiny_training

folder = Path(sys.argv[1])

# Trained like any other, by its own penalty.
sae = build_autoencoder(sae_config({"architecture": "tanh", "d_sae": 2, "l1_coefficient": 3.0, "width": 0.5}), 2)
penalty = sae.sparsity_loss(make_step(torch.tensor([[0.0, 0.5], [2.0, 0.0]])))
assert abs(float(penalty) - 3.0 * (0.7615942 + 0.9993293) / 2) < 1e-5  # tanh 1, tanh 4
trainer = Trainer(tiny_config("tanh", {"l1_coefficient": 0.05}), tiny_store(folder), DATA, tiny_training(), 0, "cpu")
for _ in range(40):
    trainer.step()
assert trainer.history[-1]["reconstruction"] < trainer.history[0]["reconstruction"]
assert trainer.history[-1]["sparsity"] > 0

# Planned where a profile names it, and nowhere else.
content = yaml.safe_load((PROFILES / "smoke.yaml").read_text()) | {"name": "mine"}
content["sweep"]["coefficients"]["tanh"] = [0.01, 0.1]
(folder / "mine.yaml").write_text(yaml.safe_dump(content))
planned = {name: [(s.group, s.seed) for s in plan_runs(load_profile(name)) if s.method == "tanh"]
           for name in ("smoke", str(folder / "mine.yaml"))}
assert planned.popitem()[1] == [("main", 42), ("main", 43), ("sweep", 7), ("sweep", 7)] and planned == {"smoke": []}

# Its row and its curve.
rows = synthetic.evaluation()
like = rows[(rows["method"] == "standard") & rows["group"].isin(["main", "sweep"])].assign(method="tanh")
rows = pd.concat([rows, like], ignore_index=True)
shown = list(main_table(rows).shown["method"])
assert shown[shown.index("JumpReLU") + 1] == "Tanh penalty", shown
figure, data = pareto_figure(rows)
assert "tanh" in set(data["method"])
assert "Tanh penalty" in {text.get_text() for text in figure.legends[0].get_texts()}
"""


def test_the_worked_example_has_its_row_and_its_curve(tmp_path: Path) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert len(source.splitlines()) < LONGEST
    (tmp_path / "example.py").write_text(source)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    command = [sys.executable, "-c", THROUGH, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
