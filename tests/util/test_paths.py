"""Paths do not depend on the working directory, and one variable moves all output."""

from pathlib import Path

import pytest

from sae_lib.util.errors import ArtifactError
from sae_lib.util.paths import OUTPUT_VARIABLE, ROOT, Paths, output_root, shown


def test_root_is_the_checkout() -> None:
    assert (ROOT / "sae_lib" / "util" / "paths.py").is_file()
    assert (ROOT / "Makefile").is_file()


def test_output_variable_moves_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OUTPUT_VARIABLE, str(tmp_path / "elsewhere"))
    paths = Paths("pocket")
    folders = [*(path for path in vars(paths).values() if isinstance(path, Path)), paths.known_results]
    assert len(folders) == 12
    for folder in folders:
        assert folder.is_relative_to(tmp_path / "elsewhere" / "pocket")


def test_output_is_under_build_and_committed_figures_are_the_default_profiles(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(OUTPUT_VARIABLE)
    monkeypatch.chdir(tmp_path)
    assert output_root() == ROOT / "build"
    assert Paths("pocket").figures == ROOT / "figures"
    assert Paths("smoke").figures == ROOT / "build" / "smoke" / "figures"
    assert Paths("pocket").results == ROOT / "build" / "pocket" / "results"


@pytest.mark.parametrize("blank", ["", "  ", "\n"])
def test_blanks_name_no_output(blank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OUTPUT_VARIABLE, blank)
    assert output_root() == ROOT / "build"
    assert Paths("pocket").figures == ROOT / "figures"


def test_relative_output_is_fixed_when_it_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(OUTPUT_VARIABLE, "here")
    assert output_root() == tmp_path / "here"


@pytest.mark.parametrize("name", ["~nosuchuser/x", "x" * 300, "loop/below"])
def test_a_name_that_no_folder_can_have_is_told(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setenv(OUTPUT_VARIABLE, name)
    with pytest.raises(ArtifactError, match=rf"^SAE_LIB_OUTPUT: '{name[:80]}' cannot be a folder \(.*; name a"):
        output_root()


def test_shown_paths_are_short_inside_the_checkout() -> None:
    assert shown(ROOT / "figures" / "a.pdf") == "figures/a.pdf"
    assert shown(Path("/elsewhere/a.pdf")) == "/elsewhere/a.pdf"
