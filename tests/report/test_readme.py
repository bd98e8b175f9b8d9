"""The README says what the results say."""

from __future__ import annotations

import re

import pytest

from sae_lib.profiles.profile import load_profile
from sae_lib.report.tables.write import BLOCK, fill_readme, with_tables
from sae_lib.study.plan import make_plan
from sae_lib.util.errors import ArtifactError
from sae_lib.util.paths import ROOT


def test_the_readme_has_the_tables_of_the_committed_results():
    text = (ROOT / "README.md").read_text(encoding="utf8")
    assert len(BLOCK.findall(text)) >= 1
    assert with_tables(text, ROOT) == text, "run `python -m sae_lib readme`"


def test_files_that_the_readme_links_to_exist():
    text = (ROOT / "README.md").read_text(encoding="utf8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links and not [link for link in links if not (ROOT / link).exists()]


@pytest.mark.parametrize("name", ["smoke", "pocket", "smollm2", "smollm2-hour", "pythia-70m", "gpt2", "gemma-2-2b"])
def test_the_number_of_saes_at_each_scale(name: str):
    text = (ROOT / "README.md").read_text(encoding="utf8")
    (row,) = re.findall(rf"^\| `{re.escape(name)}`.*$", text, re.MULTILINE)
    assert row.split("|")[3].strip() == str(make_plan(load_profile(name)).saes.total())


def test_a_block_is_replaced_and_the_text_around_it_stays(tmp_path):
    (tmp_path / "t.md").write_text("| new |\n")
    (tmp_path / "README.md").write_text("before\n<!-- t.md -->\n| old |\n<!-- end -->\nafter\n")
    fill_readme(tmp_path)
    assert (tmp_path / "README.md").read_text() == "before\n<!-- t.md -->\n| new |\n<!-- end -->\nafter\n"


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"t\.md is not there"):
        with_tables("<!-- t.md -->\n<!-- end -->", tmp_path)
