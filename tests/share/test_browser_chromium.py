"""The static browser as a reader uses it: opened from disk in headless Chromium, without network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.absorption.reference import build_absorption_reference
from sae_lib.share.browser import Examination, write_browser
from tests import chromium
from tests.metrics import conftest as letters_model
from tests.share.test_browser_page import nasty
from tests.tiny_examination import CONFIG, tiny_examination, tiny_sae

tokenizer, lm = letters_model.tokenizer, letters_model.lm
__all__ = ["nasty"]  # a fixture of another file

pytestmark = pytest.mark.skipif(chromium.installed() is None, reason="there is no Chromium")
ROWS = "#rows .row"
CHOSEN = "#rows .row[aria-selected=true]"


@pytest.fixture(scope="module")
def examination(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Examination:
    reference = build_absorption_reference(lm, CONFIG, tmp_path_factory.mktemp("reference"))
    return tiny_examination(lm, reference, seeds={1: tiny_sae(1)})


@pytest.fixture(scope="module")
def address(examination: Examination, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("a folder with ünusual name")
    return write_browser(examination, folder / "page.html").as_uri()


@pytest.fixture
def page(address: str, tmp_path: Path) -> Iterator[chromium.Chromium]:
    with chromium.Chromium(tmp_path / "browser") as opened:
        opened.open(address)
        yield opened
        assert opened.problems == []


def wait_for(page: chromium.Chromium, selector: str, beginning: str) -> None:
    """Wait until an element's text begins like this; the address changes before the page does."""
    page.wait(f"document.querySelector('{selector}')?.textContent.startsWith('{beginning}')")


def latents(page: chromium.Chromium) -> list[int]:
    return [int(text) for text in page.texts(f"{ROWS} > :first-child")]


def test_search_sort_and_click_show_a_latents_contexts(page, examination):
    assert page.texts("#title") == ["SAE"] and page.texts("#count") == ["64 latents"]
    page.click("#search")
    page.type("12")
    page.wait("document.getElementById('count').value !== '64 latents'")
    assert latents(page)[0] == 12
    page.click(f"{ROWS}[data-latent='12']")
    wait_for(page, "#latent h2", "Latent 12 ")
    examples = examination.firing.examples(12)
    assert len(page.texts(".example")) == len(examples)
    for shown, example in zip(page.texts(".example .token"), examples, strict=True):
        tokens = examination.firing.tokens[example.context, example.start : example.start + len(example.activations)]
        assert shown.strip("…") == "".join(examination.pieces[token] for token in tokens.tolist())
    peaks = [examination.pieces[int(examination.firing.tokens[e.context, e.peak])] for e in examples]
    assert page.texts(".example .peak") == peaks
    strengths = [max(e.activations) for e in examples]
    assert [float(text) for text in page.texts(".example > .number")] == pytest.approx(strengths, abs=0.02)


def test_every_column_sorts_both_ways(page, examination):
    density = examination.firing.density
    page.click("#columns [data-key=density]")
    falling = latents(page)
    assert [density[i] for i in falling] == sorted((density[i] for i in falling), reverse=True)
    assert density[falling[0]] == max(density)
    page.click("#columns [data-key=density]")
    assert latents(page)[0] == 7  # it never fires
    assert page.texts(f"{ROWS}[data-latent='7'] > :nth-child(5)") == ["never"]
    page.click("#columns [data-key=stability]")
    cosines = examination.match.cosines[0].tolist()
    cosines[7] = -2  # nothing trained its direction, so it stands last
    assert latents(page)[0] == cosines.index(max(cosines))
    page.click("#columns [data-key=maximum]")
    assert latents(page)[0] == int(examination.firing.maximum.argmax())
    page.click("#columns [data-key=latent]")
    assert latents(page)[:5] == [0, 1, 2, 3, 4]


def test_the_keyboard_is_enough(page):
    page.press("/")
    assert page.run("document.activeElement.id") == "search"
    page.type("zzzzz")
    assert page.texts("#count") == ["0 of 64"] and latents(page) == []
    page.run("document.getElementById('search').value = ''")
    page.type("1")
    first, second = latents(page)[:2]
    page.press("Enter")
    wait_for(page, "#latent h2", f"Latent {first} ")
    page.press("ArrowDown")
    wait_for(page, "#latent h2", f"Latent {second} ")
    page.run("document.getElementById('list').focus()")
    page.press("End")
    last = page.run("latents.found[latents.found.length - 1].latent")
    wait_for(page, "#latent h2", f"Latent {last} ")
    assert page.texts(f"{CHOSEN} > :first-child") == [str(last)]
    page.run("history.back()")
    wait_for(page, "#latent h2", f"Latent {second} ")


def test_absorption_word_by_word(page, examination):
    page.click("#tab-absorption")
    page.wait("!document.getElementById('view-absorption').hidden")
    best = examination.letter()
    assert page.texts("#letter") == [f"Words that begin with {best.letter.upper()}"]
    assert f"Absorption fraction {best.fraction:.3f}, full {best.full:.3f}" in page.texts("#summary")[0]
    absorbed = max(examination.letters, key=lambda reading: reading.fraction)
    page.click(f"#letters [data-letter={absorbed.letter}]")
    wait_for(page, "#letter", f"Words that begin with {absorbed.letter.upper()}")
    rows = page.texts("#words tr:not(.group)")
    assert len(rows) == len(absorbed.contrast) + min(40, len(absorbed.words))
    first = absorbed.words[0]
    assert rows[len(absorbed.contrast)].startswith(first.word.replace(" ", "␣"))
    bars = page.run("[...document.querySelectorAll('#words .absorbing')].map((e) => e.getBoundingClientRect().width)")
    assert len(bars) and all(width > 0 for width in bars)
    absorber = first.absorbers[0].latent
    page.click(f"#words tr:not(.group) td:nth-child(5) a[href='#latent-{absorber}']")
    wait_for(page, "#latent h2", f"Latent {absorber} ")
    assert any("Absorbs the letter" in text for text in page.texts("#latent p"))
    page.run("history.back()")
    page.wait("!document.getElementById('view-absorption').hidden")
    page.press("ArrowRight")
    names = [reading.letter for reading in examination.letters]
    after = names[(names.index(absorbed.letter) + 1) % len(names)]
    wait_for(page, "#letter", f"Words that begin with {after.upper()}")


def test_an_address_opens_its_latent_and_only_rows_in_sight_are_drawn(address, tmp_path):
    with chromium.Chromium(tmp_path / "browser") as page:
        page.open(f"{address}#latent-41")
        wait_for(page, "#latent h2", "Latent 41 ")
        assert page.texts(f"{CHOSEN} > :first-child") == ["41"]
        assert len(page.texts(ROWS)) < 50
        page.run("history.replaceState(null, '', '#latent-999'); dispatchEvent(new HashChangeEvent('hashchange'))")
        assert page.texts("#latent h2")[0].startswith("Latent 41 ")  # there is no 999: what was shown stays
        assert page.problems == []


def test_tokens_that_look_like_markup_run_nothing(nasty, tmp_path):
    file = write_browser(nasty, tmp_path / "nasty.html")
    with chromium.Chromium(tmp_path / "browser") as page:
        page.open(file.as_uri())
        page.run("window.alert = () => { throw new Error('ran') }")
        for latent in range(nasty.d_sae):
            page.run(f"location.hash = '#latent-{latent}'")
            wait_for(page, "#latent h2", f"Latent {latent} ")
            assert page.run("document.querySelectorAll('#latent script, #latent b b, .token b').length") == 0
        shown = "".join(page.texts("#latent .token"))
        assert "</script>" in shown or "<b>bold</b>" in shown
        assert page.run("document.getElementById('tab-absorption').hidden")
        assert page.problems == []
