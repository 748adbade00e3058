"""Explanations as pages: one file that stands alone, pictures as they are, numbers as everywhere else, legible by day and by night."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from m0.explain.html import fragment, page, script, style
from m0.explain.numbers import decimals_for, format_relevance, legend, top_words
from m0.explain.originals import KEPT_PIXELS
from m0.explain.show import NEGATIVE_COLOUR, POSITIVE_COLOUR
from m0.inputs.reading import read_parts
from tests.conftest import noise

NASTY = '<script>alert("x")</script> & </script><!-- \u2028 "quotes" it\'s'
VOID = ("meta", "img", "input")


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.shown = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.shown += data

    def of_class(self, name):
        return [attributes for _, attributes in self.found if name in (attributes.get("class") or "").split()]


def pictures_in(text):
    """The pictures that a page shows, without their heat maps."""
    found = [attributes["src"] for attributes in Tags(text).of_class("seen")]
    return [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in found]


def test_a_page_stands_alone_whatever_the_text(tiny, tmp_path):
    found = [tiny.explain(NASTY, [NASTY, noise(84, 56, 2)], method=method) for method in ("attnlrp", "attention")]
    text = page(found, tmp_path / "page.html", names=[NASTY, "b"])
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == text
    tags = Tags(text)
    assert not tags.open
    assert [tag for tag, _ in tags.found].count("script") == 3  # one for all, and one call each
    assert NASTY in tags.shown
    for _, attributes in tags.found:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not re.search(r"(?:src|href)=\"?https?:|url\(|@import|fetch\(", text)
    alone = Tags(found[0]._repr_html_())
    assert not alone.open
    assert [tag for tag, _ in alone.found].count("script") == 1
    assert style() in found[0]._repr_html_()


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_script_can_be_read(tmp_path):
    """What it does is tried in a browser (`make test-browser`)."""
    (tmp_path / "page.js").write_text(f"const m0explain = {script()};", encoding="utf-8")
    done = subprocess.run(["node", "--check", str(tmp_path / "page.js")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_picture_is_shown_as_it_is(tiny):
    drawn = Image.new("RGB", (700, 500), (250, 250, 240))
    drawn.paste((200, 20, 30), (100, 100, 300, 140))
    found = tiny.explain("a red bar", {"image": drawn}, method="attention")
    assert found.encoding.pictures[0].pixels.shape != (500, 700, 3)
    (shown,) = pictures_in(found.to_html())
    assert shown.size == (700, 500)
    assert np.abs(np.asarray(shown.convert("RGB"), dtype=int) - np.asarray(drawn, dtype=int)).mean() < 1


def test_large_pictures_are_made_smaller_and_grainy_ones_are_kept_lossy(tiny):
    large = noise(2400, 1600, 3)
    (shown,) = pictures_in(tiny.explain("waves", large, method="attention").to_html())
    assert 0.98 * KEPT_PIXELS < shown.width * shown.height <= KEPT_PIXELS
    assert shown.width / shown.height == pytest.approx(1.5, rel=0.01)
    assert shown.format != "PNG"
    expected = np.asarray(large.resize(shown.size, Image.Resampling.BICUBIC), dtype=int)
    assert np.abs(np.asarray(shown.convert("RGB"), dtype=int) - expected).mean() < 12


def test_both_sides_of_a_report_show_their_pictures(tiny, tmp_path):
    tiny.explain_ranking({"image": noise(300, 200)}, [{"image": noise(260, 210, 1)}], tmp_path / "r.html", method="attention")
    assert sorted(shown.size for shown in pictures_in((tmp_path / "r.html").read_text())) == [(260, 210), (300, 200)]


def test_only_who_shows_pictures_keeps_them(tiny):
    assert tiny.encode("q", {"image": noise(90, 60)}).pictures[0].original is None
    (read,) = read_parts({"image": noise(300, 200)}, "document", tiny.image_settings)
    text = tiny.explain("q", [read], method="attention").to_html()
    assert "shown as the model saw it" in text
    (shown,) = pictures_in(text)
    assert shown.size == read.pixels.shape[1::-1]


@pytest.mark.parametrize(
    ("value", "decimals", "signed", "text"),
    [
        (0.12345, 3, True, "+0.123"),
        (-0.12345, 3, True, "-0.123"),
        (-0.0004, 3, True, "0.000"),
        (0.12345, 3, False, "0.123"),
        (1234.5, 0, True, "+1234"),
        (0.2, 4, True, "+0.2000"),
    ],
)
def test_numbers_are_written_one_way(value, decimals, signed, text):
    assert format_relevance(value, decimals, signed) == text


def test_the_largest_has_three_digits():
    assert [decimals_for(scale) for scale in (0.0123, 0.123, 1.23, 12.3, 123.0, 12345.0)] == [4, 3, 2, 1, 0, 0]


@pytest.mark.parametrize("method", ["frozen_gradient", "attention"])
def test_terminal_page_and_json_agree(tiny, method):
    found = tiny.explain("red heart", ["A heart that is red, not blue", noise(84, 56, 2)], method=method)
    data, html, terminal = json.loads(json.dumps(found.to_json())), found.to_html(), found.to_terminal(color=False)
    assert data["legend"] == legend(found)
    assert data["legend"] in terminal
    tags = Tags(html)
    assert data["legend"] in tags.shown
    assert method in data["legend"]
    assert data["top_words"]
    listed = ", ".join(f"{word['text']} {word['shown']}" for word in data["top_words"])
    assert f"top words of the document: {listed}\n" in terminal
    assert "".join(word["text"] + word["shown"] for word in data["top_words"]) in tags.shown
    assert len(tags.of_class("hi")) == len(data["top_words"]) == len(top_words(found))
    called = json.loads(re.search(r"currentScript.parentElement, (\{.*\})\)</script>", html)[1])
    for number, word in enumerate(data["words"]):
        assert format_relevance(called["words"][str(number)], data["decimals"], found.signed) == word["shown"]
    (picture,) = data["pictures"]
    assert f"relevance {picture['shown']}" in terminal
    assert f"relevance {picture['shown']}" in tags.shown
    shares = re.search(r"relevance: document (\d+%), query (\d+%)", terminal)
    assert f"share of the document{shares[1]}" in tags.shown


def test_what_can_be_reached_says_what_it_is(tiny):
    tags = Tags(fragment(tiny.explain("red heart", ["A heart", noise(84, 56, 2)]), "the <name>"))
    assert tags.of_class("m0")[0]["aria-label"] == "the <name>"
    for tag, attributes in tags.found:
        if attributes.get("role") in ("group", "listbox", "application", "option") or attributes.get("type") == "range":
            assert attributes["aria-label"]
        if tag == "img":
            assert attributes["alt"]
    assert [attributes["aria-live"] for attributes in tags.of_class("said")] == ["polite"]
    assert all(word["tabindex"] == "-1" for word in tags.of_class("w"))  # the script gives one of each text to the Tab key
    assert tags.of_class("next")[0]["aria-keyshortcuts"] == "n"


def test_without_a_word_there_is_nothing_to_jump_to(tiny):
    tags = Tags(tiny.explain("q", noise(84, 56, 2), method="attention").to_html())
    assert not tags.of_class("next")
    assert not tags.of_class("top")


def luminance(colour):
    channels = [value / 255 for value in colour]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def from_style(name, scheme):
    value = re.findall(rf"--{name}: #([0-9a-f]+)", style())[("light", "dark").index(scheme)]
    return tuple(int(value[n] * 2 if len(value) == 3 else value[2 * n : 2 * n + 2], 16) for n in range(3))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read_on_every_shade(scheme):
    """WCAG 2.2 asks for a contrast of 4.5."""
    ink, paper = from_style("ink", scheme), from_style("paper", scheme)
    most = float(re.findall(r"--most: ([.\d]+)", style())[("light", "dark").index(scheme)])
    for tint in (POSITIVE_COLOUR, NEGATIVE_COLOUR):
        for step in range(101):
            alpha = most * step / 100
            shade = [alpha * own + (1 - alpha) * under for own, under in zip(tint, paper, strict=True)]
            assert contrast(ink, shade) >= 4.5, (tint, step)
    for under in (paper, from_style("button", scheme)):
        assert min(contrast(ink, under), contrast(from_style("soft", scheme), under)) >= 4.5
