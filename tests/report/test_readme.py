"""The README says what the results say."""

from __future__ import annotations

import re

import pytest

from sae_lib.errors import ArtifactError
from sae_lib.paths import ROOT
from sae_lib.report.readme import BLOCK, main, with_tables


def test_the_readme_has_the_tables_of_the_committed_results():
    text = (ROOT / "README.md").read_text(encoding="utf8")
    assert len(BLOCK.findall(text)) >= 2
    assert with_tables(text, ROOT) == text, "run `python -m sae_lib.report.readme`"


def test_files_that_the_readme_links_to_exist():
    text = (ROOT / "README.md").read_text(encoding="utf8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links and not [link for link in links if not (ROOT / link).exists()]


def test_a_block_is_replaced_and_the_text_around_it_stays(tmp_path):
    (tmp_path / "t.md").write_text("| new |\n")
    (tmp_path / "README.md").write_text("before\n<!-- t.md -->\n| old |\n<!-- end -->\nafter\n")
    main(tmp_path)
    assert (tmp_path / "README.md").read_text() == "before\n<!-- t.md -->\n| new |\n<!-- end -->\nafter\n"


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"t\.md is not there"):
        with_tables("<!-- t.md -->\n<!-- end -->", tmp_path)
