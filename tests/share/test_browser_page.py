"""The static browser and the notebook views: what is in them, and that no token can break out of its place."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Gemma2ForCausalLM, PreTrainedTokenizerFast

from sae_lib.__main__ import main
from sae_lib.autoencoders.build import load_autoencoder
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.absorption.reference import AbsorptionReference, build_absorption_reference
from sae_lib.profiles.runs import expected_calibration
from sae_lib.share import browser
from sae_lib.share.browser import Examination, examine, show_absorption, show_latent, write_browser
from sae_lib.share.browser.page import as_script, page_data
from sae_lib.share.browser.sources import examine_run
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import write_json
from tests.metrics import conftest as letters_model
from tests.metrics.tiny_saes import make_sae
from tests.share.test_evaluate import WIDTH, tiny_texts, write_sae
from tests.study.test_stages import folder, main_runs, opened
from tests.tiny_examination import CONFIG, tiny_examination, tiny_sae
from tests.tiny_models import SPECIAL, VOCABULARY, configuration, save_tiny_model

tokenizer, lm = letters_model.tokenizer, letters_model.lm
__all__ = ["folder", "opened"]  # fixtures of another file

ASSETS = Path(browser.__file__).parent / "assets"
NASTY = [
    "</script><script>alert(1)</script>", "<!--", "-->", "<b>bold</b>", "&amp;", "&lt;", '"', "'", "' onclick='x", "\\",
    "\\u003c", "]]>", "{{data}}", "{{script}}", "\n", "\r", "\t", "\x00", "\x1b[31m", "\u202e", "\u2028", "é", "🙂",
]  # fmt: skip


ALLOWED = {"div", "b", "span", "table", "tr", "th", "td", "code"}


class Parsed(HTMLParser):
    """The elements of a page, the text of its data, and whether what was opened was closed."""

    EMPTY = ("meta", "link", "input", "br", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.stack[-1] if self.stack else "", []).append(data)


def data_of(page: str) -> dict[str, Any]:
    """The data of a page as a JSON parser reads it."""
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, flags=re.S)
    assert found
    return dict(json.loads(found[1]))


@pytest.fixture(scope="module")
def reference(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> AbsorptionReference:
    return build_absorption_reference(lm, CONFIG, tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="module")
def examination(lm: LanguageModel, reference: AbsorptionReference) -> Examination:
    return tiny_examination(lm, reference, seeds={1: tiny_sae(1)}, title="tiny & <small>")


@pytest.fixture(scope="module")
def nasty() -> Examination:
    """Every token of the text is one that would break a page that does not escape."""
    words = [*SPECIAL.values(), *NASTY]
    words += [f"w{i}" for i in range(len(words), VOCABULARY)]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(configuration("gemma2"))
    lm = LanguageModel(
        model, PreTrainedTokenizerFast(tokenizer_object=raw, **SPECIAL), name="nasty", layer=1, whole=True, identity="n"
    )
    tokens = torch.arange(4, 4 + len(NASTY)).repeat(6, 1)
    tokens = torch.stack([row.roll(i) for i, row in enumerate(tokens)])
    sae = make_sae(d_in=16, architecture="topk", k=4, d_sae=24)
    return examine(sae, lm, torch.cat([torch.zeros(6, 1, dtype=torch.long), tokens], dim=1), title='</title>"{{data}}')


def test_the_data_of_the_page_is_the_examination(examination, tmp_path):
    page = write_browser(examination, tmp_path / "page.html").read_text(encoding="utf-8")
    data = data_of(page)
    assert data == json.loads(json.dumps(page_data(examination)))
    assert data["density"] == pytest.approx(examination.firing.density.tolist(), rel=1e-3)
    assert data["start"] == examination.letter().letter
    for latent, examples in enumerate(data["examples"]):
        expected = examination.firing.examples(latent)
        assert len(examples) == len(expected)
        for (context, start, stop, peak, strongest, levels), one in zip(examples, expected, strict=True):
            ids = examination.firing.tokens[one.context, one.start : one.start + len(one.activations)].tolist()
            shown = [data["pieces"][token] for token in data["contexts"][context][start:stop]]
            assert shown == [examination.pieces[token] for token in ids]
            assert (start, peak, bool(strongest)) == (one.start, one.peak, one.strongest)
            activations = dict(zip(levels[::2], levels[1::2], strict=True))
            maximum = data["maximum"][latent]
            for offset, value in enumerate(one.activations):
                assert activations.get(offset, 0) * maximum / 1000 == pytest.approx(value, abs=maximum / 1500)
    assert data["roles"].keys() == {str(latent) for latent in examination.roles}
    words = {reading["letter"]: reading["words"] for reading in data["letters"]}
    for reading in examination.letters:
        assert [word["word"] for word in words[reading.letter]] == [word.word for word in reading.words]
        assert [word["verdict"] for word in words[reading.letter]] == [word.verdict for word in reading.words]


def test_the_same_examination_gives_the_same_bytes(lm, reference, tmp_path):
    files = [
        write_browser(tiny_examination(lm, reference, seeds={1: tiny_sae(1)}), tmp_path / name).read_bytes()
        for name in ("first.html", "second.html")
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize("which", ["examination", "nasty"])
def test_the_page_is_whole_and_needs_nothing_else(which, request, tmp_path):
    examination = request.getfixturevalue(which)
    page = write_browser(examination, tmp_path / "page.html").read_text(encoding="utf-8")
    parsed = Parsed(page)
    assert [tag for tag, _ in parsed.tags].count("script") == 2
    assert "".join(parsed.texts["title"]) == examination.title
    linked = [value for _, held in parsed.tags for name, value in held.items() if name in ("src", "href", "action")]
    assert set(linked) <= {"data:,", "#latents", "#absorption"}
    assert not re.search(r"@import|url\(|https?:|fetch\(|innerHTML|eval\(", page.replace(as_script(data_of(page)), ""))


def test_tokens_that_look_like_markup_are_only_text(nasty, tmp_path):
    page = write_browser(nasty, tmp_path / "page.html").read_text(encoding="utf-8")
    pieces = data_of(page)["pieces"]
    visible = {
        "\n": "⏎",
        "\r": "␍",
        "\t": "␉",
        "\x00": "␀",
        "\x1b[31m": "␛[31m",
        "\u202e": "⟨202E⟩",
        "\u2028": "⟨2028⟩",
    }
    assert set(pieces) >= {visible.get(token, token) for token in NASTY}
    inside = re.search(r'type="application/json">(.*?)</script>', page, flags=re.S)
    assert inside and not re.search("[<>&\u2028\u2029]", inside[1])
    for latent in range(nasty.d_sae):
        view = show_latent(nasty, latent)
        assert {tag for tag, _ in Parsed(view._repr_html_()).tags} <= ALLOWED
        assert {name for _, held in Parsed(view._repr_html_()).tags for name in held} <= {"style", "title"}
        assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", repr(view))


def test_a_latent_in_a_notebook(examination):
    view = show_latent(examination, 3, strongest=2, spread=1)
    examples = examination.firing.examples(3, 2, 1)
    html, text = view._repr_html_(), repr(view)
    assert len(examples) == 3 and html.count("text-decoration:underline") == 3
    for example in examples:
        peak = examination.pieces[int(examination.firing.tokens[example.context, example.peak])]
        assert f"[{peak}]" in text and f"{max(example.activations):.2f}" in text
    assert f"cosine {float(examination.match.cosines[0, 3]):.2f}" in text
    shaded = re.findall(r"rgba\(1, 115, 178, ([0-9.]+)\)[^>]*title='([0-9.]+)'", html)
    largest = examination.firing.maximum[3]
    for shade, value in shaded:
        assert float(shade) == pytest.approx(0.08 + 0.57 * float(value) / largest, abs=0.01)
    assert "never fires in this text" in repr(show_latent(examination, 7))
    assert "never fires in this text" in show_latent(examination, 7)._repr_html_()


def test_absorption_in_a_notebook(examination):
    view = show_absorption(examination, words=4)
    reading = examination.letter()
    html, text = view._repr_html_(), repr(view)
    assert f"Absorption fraction {reading.fraction:.3f}, full {reading.full:.3f} (lower is better)" in text
    assert [tag for tag, _ in Parsed(html).tags].count("tr") == 1 + len(text.splitlines()) - 2
    for word in reading.words[:4]:
        line = next(line for line in text.splitlines() if line.startswith(word.word.replace(" ", "␣") + "  "))
        assert f"{word.fraction:.2f}" in line and all(f"{each.latent}: " in line for each in word.absorbers)


# Search and order, run by node as the page runs them.

FIELDS = ("latent", "roles", "peaks", "promoted", "density", "maximum", "stability")
ENTRIES = [
    (0, [], ["some", "sum"], ["cat"], 0.5, 3, None),
    (1, [["split", "s", []]], ["s", "tom"], [], 0.1, 9, 0.2),
    (10, [["main", "s", []]], ["10", "awesome"], [], 0.1, 5, 0.9),
    (12, [["absorber", "c", ["a", "b"]]], ["dog"], ["cats"], 0.0, 0, 0.4),
    (13, [["absorber", "c", ["a", "b", "d"]]], [], [], 0.2, 1, 0.3),
]
CASES = [
    ("", "latent", False, [0, 1, 10, 12, 13]),
    ("", "density", True, [0, 13, 1, 10, 12]),  # equal densities: the smaller number first
    ("", "maximum", False, [12, 13, 0, 10, 1]),
    ("", "stability", True, [10, 12, 13, 1, 0]),
    ("", "stability", False, [1, 13, 12, 10, 0]),  # without a value: last, either way
    ("", "letter", False, [13, 12, 10, 1, 0]),
    ("1", "latent", False, [1, 10, 12, 13]),
    ("#10", "latent", False, [10]),
    (" S ", "latent", False, [10, 1]),
    ("some", "latent", False, [0, 10]),
    ("CAT", "latent", True, [12, 0]),
    ("zebra", "latent", False, []),
]


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")
def test_search_and_order():
    script = (
        "const { find } = require(process.argv[1]); const [entries, cases] = JSON.parse(process.argv[2]);"
        "const found = cases.map(([query, key, falling]) => find(entries, query, key, falling).map((e) => e.latent));"
        "console.log(JSON.stringify(found));"
    )
    entries = [dict(zip(FIELDS, values, strict=True)) for values in ENTRIES]
    command = ["node", "-e", script, str(ASSETS / "search.js"), json.dumps([entries, [case[:3] for case in CASES]])]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found == [case[3] for case in CASES]


# The command line.


def test_a_folder_of_any_origin(tmp_path, capsys):
    save_tiny_model(tmp_path / "model")
    folder = write_sae(tmp_path / "my sae", WIDTH)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(tiny_texts()))
    asked = [str(folder), "--model", str(tmp_path / "model"), "--layer", "1", "--files", str(text), "--device", "cpu",
             "--contexts", "6", "--context-length", "16", "--out", str(tmp_path / "out")]  # fmt: skip
    assert main(["browser", *asked]) == 0
    file = tmp_path / "out" / "my sae.html"
    assert str(file) in capsys.readouterr().out
    data = data_of(file.read_text())
    assert data["letters"] == [] and len(data["density"]) == 2 * WIDTH
    facts = dict(data["facts"])
    assert facts["first letters"].startswith("not shown (") and "6 contexts" in facts["text"]
    assert main(["browser", str(tmp_path / "nothing"), "--model", str(tmp_path / "model")]) == 1
    error = capsys.readouterr().err
    assert str(tmp_path / "nothing") in error and error.count("\n") == 1


def test_a_run_of_a_profile(opened, tmp_path, capsys):
    experiment = opened(1)
    asked = ["--profile", experiment.source, "--contexts", "8", "--out", str(tmp_path)]
    assert main(["browser", *asked]) == 1
    assert f"make paper PROFILE={experiment.source}" in capsys.readouterr().err
    calibration = experiment.paths.results / "calibration.json"
    write_json(calibration, expected_calibration(experiment.profile).model_dump())
    assert main(["browser", *asked, "--method", "atm"]) == 1
    assert "atm, seed 42 of small1 is not trained by this version" in (said := capsys.readouterr().err)
    assert "; run `make paper" in said
    write_json(experiment.paths.keys / "02_train.json", {})
    assert main(["browser", *asked, "--method", "atm"]) == 1
    assert f"; remove {experiment.paths.keys / '02_train.json'} and run `make paper" in capsys.readouterr().err
    topk = [spec for spec in main_runs(experiment) if spec.method == "topk"]
    experiment.train(topk)
    assert main(["browser", *asked]) == 0
    data = data_of((tmp_path / "topk_42.html").read_text())
    assert data["title"] == "TopK, seed 42 · small1" and len(data["density"]) == 64
    sae = load_autoencoder(experiment.run_folder(topk[0], experiment.store_key))
    assert sum(data["density"]) == pytest.approx(sae.cfg.get("k"), abs=0.5)
    with pytest.raises(ArtifactError, match="seed: topk has no seed 7; choose from 42"):
        examine_run(experiment, "topk", 7)
    with pytest.raises(ArtifactError, match="method: 'nothing' is not in the main table; choose from standard, gated"):
        examine_run(experiment, "nothing", 42)
    calibration.unlink()


def test_what_is_missing_is_told_in_one_line(capsys):
    assert main(["browser", "--profile", "smoke"]) == 1
    assert re.fullmatch(
        r"error: profile: smoke has no trained SAEs in .*; run `make paper PROFILE=smoke`\n", capsys.readouterr().err
    )
    assert main(["browser", "--profile", "smoke", "--contexts", "0"]) == 1
    assert "must be 1 or more" in capsys.readouterr().err
    for wrong in ([], ["folder"], ["folder", "--model", "pocket", "--profile", "smoke"]):
        with pytest.raises(SystemExit):
            main(["browser", *wrong])
