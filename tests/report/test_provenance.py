"""The provenance table says what was really there."""

import subprocess
import time
from pathlib import Path

import pytest

from sae_lib.profiles.profile import load_profile
from sae_lib.report import provenance as module
from sae_lib.report.provenance import Provenance, code_revision, provenance
from sae_lib.util.files import file_sha256, write_json
from sae_lib.util.paths import LOCK_FILE, Paths


def test_facts_come_from_the_profile_the_lock_and_the_manifests() -> None:
    profile = load_profile("pocket")
    assert provenance(profile, time.time())["corpus"] == "not made yet"
    paths = Paths("pocket")
    write_json(paths.tokens / "manifest.json", {"corpus_hash": "c0ffee" * 10})
    write_json(paths.store / "manifest.json", {"identity": "feed" * 16})
    facts = provenance(profile, time.time() - 90)
    assert facts["corpus"] == "c0ffeec0ffee"
    assert facts["model identity"] == "feedfeedfeed"
    assert facts["seeds"] == ", ".join(str(seed) for seed in profile.training.seeds)
    assert facts["lock"] == f"{file_sha256(LOCK_FILE)[:12]} (all pins installed)"
    assert facts["device"] == "CPU, 1 thread"
    assert facts["versions"].startswith("torch 2.13.0")
    assert 90 <= int(facts["wall time"].removesuffix(" s")) < 150


def test_other_versions_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "differences", lambda: ["numpy is 1.0, the lock says 2.0", "torch is missing"])
    lock = provenance(load_profile("pocket"), time.time())["lock"]
    assert lock.endswith("(differs: numpy is 1.0, the lock says 2.0 and 1 more)")


def test_printed_as_lines() -> None:
    facts = Provenance({"seeds": "42, 43", "wall time": "3 s"})
    assert str(facts) == "seeds      42, 43\nwall time  3 s"


def test_revision_names_the_commit_and_local_changes_of_code_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROOT", tmp_path)
    assert code_revision() == "unknown"

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (tmp_path / "sae_lib").mkdir()
    (tmp_path / "sae_lib" / "a.py").write_text("a = 1\n")
    (tmp_path / "README.md").write_text("first\n")
    git("add", ".")
    git("commit", "--message", "first")
    commit = git("rev-parse", "--short=12", "HEAD")
    (tmp_path / "README.md").write_text("second\n")
    assert code_revision() == commit
    (tmp_path / "sae_lib" / "a.py").write_text("a = 2\n")
    assert code_revision() == f"{commit} and local changes"

    # A copy without history inside another repository has no revision.
    monkeypatch.setattr(module, "ROOT", tmp_path / "sae_lib")
    assert code_revision() == "unknown"
