"""Words of a PDF's page: what of the cells falls on each, and the page as it is drawn."""

import base64
import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from m0.cli.main import main
from m0.explain import of_passage
from m0.explain.numbers import top_words
from m0.explain.originals import KEPT_PIXELS, attach_page
from m0.explain.page_words import sum_in_boxes
from m0.inputs.images import ImageSettings, prepare_picture
from m0.inputs.pages import read_pages
from tests.conftest import noise
from tests.explain.test_html import Tags, pictures_in
from tests.inputs.pdfs import pages, words

pytest.importorskip("pypdfium2")
PAGE = words("compass and") + words("dolphin", 200, 20, 12)
BOX = "/MediaBox [0 0 300 200]"


@pytest.fixture
def report(tmp_path):
    path = tmp_path / "report.pdf"
    path.write_bytes(pages([words("nothing"), PAGE], BOX))
    return path


def test_sums_by_area():
    grid = np.array([[1.0, 2.0], [4.0, 8.0]])
    boxes = np.array([[0, 0, 2, 2], [0, 0, 1, 1], [0.5, 0.5, 1.5, 1.5], [1.25, 0, 1.5, 1], [-1, -1, 0.5, 9]])
    assert sum_in_boxes(grid, boxes).tolist() == pytest.approx([15, 1, 15 / 4, 0.5, 2.5])


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [({"method": "attention"}, 1e-6), ({"method": "gradient_input", "pixels": True}, 0.05)],  # whose own pixels are wider
)
def test_a_word_has_what_falls_on_its_box(tiny, report, options, tolerance):
    found = tiny.explain("compass", {"pdf": report, "pages": "2"}, **options)
    assert [word.text for word in found.page_words] == ["compass", "and", "dolphin"]
    shown, scale = found.pictures[0], found.passage.page.scale
    assert (found.passage.page.number, scale) == (2, pytest.approx(200 / 72))
    for word in found.page_words:
        assert (word.page, word.picture) == (2, 0)
        left, top, right, bottom = (edge * scale for edge in word.box)
        height, width = shown.pixels.shape
        across = np.clip(np.minimum(right, np.arange(width) + 1) - np.maximum(left, np.arange(width)), 0, None)
        down = np.clip(np.minimum(bottom, np.arange(height) + 1) - np.maximum(top, np.arange(height)), 0, None)
        size = float(down @ np.abs(shown.pixels) @ across)
        assert word.relevance == pytest.approx(float(down @ shown.pixels @ across), abs=tolerance * size)


def test_the_word_beneath_the_hot_cell_is_the_top_one(tiny, report):
    found = tiny.explain("dolphin", {"pdf": report, "pages": "2"}, method="attention")
    columns = found.pictures[0].cells.shape[1]
    box = found.page_words[2].cells
    row, column = int((box[1] + box[3]) / 2), int((box[0] + box[2]) / 2)
    tokens = torch.zeros_like(found.tokens)
    first = next(n for n, origin in enumerate(found.encoding.origins) if origin.row is not None)
    tokens[first + row * columns + column] = 1.0
    hot = replace(found, tokens=tokens)
    assert top_words(hot)[0].text == "dolphin"
    assert sum(word.relevance for word in hot.page_words) <= 1.0
    assert next(word for word in hot.page_words if word.text == "compass").relevance == 0


def test_numbers_agree(tiny, report):
    found = tiny.explain("compass", {"pdf": report, "pages": "2"})
    data, tags = json.loads(json.dumps(found.to_json())), Tags(found.to_html())
    assert [word["text"] for word in data["page_words"]] == ["compass", "and", "dolphin"]
    for word, kept in zip(data["page_words"], found.page_words, strict=True):
        assert word["relevance"] == kept.relevance
        assert tuple(word["box"]) == kept.box
        assert float(word["shown"]) == pytest.approx(kept.relevance, abs=0.51 * 10 ** -data["decimals"])
    assert [word["aria-label"] for word in tags.of_class("p")] == [f"{w['text']}, {w['shown']}" for w in data["page_words"]]
    largest = max(abs(word["relevance"]) for word in data["page_words"])
    assert largest >= 0.999 * 10 ** -(data["decimals"] - 2)  # three digits of a word, however faint beside whole cells
    listed = ", ".join(f"{word['text']} {word['shown']}" for word in data["top_words"])
    assert f"top words of the document: {listed}\n" in found.to_terminal(color=False)
    assert all(word["page"] == 2 for word in data["top_words"])
    assert "by area" in data["legend"]


def test_words_lie_over_the_page_where_they_are_printed(tiny, report):
    """The page is black where the boxes say that a word is, and white between."""
    text = tiny.explain("compass", {"pdf": report, "pages": "2"}, method="attention").to_html()
    (shown,) = pictures_in(text)
    assert shown.size == (834, 556)  # 200 dpi, not the model's size
    dark = np.asarray(shown.convert("L")) < 128
    seen = np.zeros_like(dark)
    for word in Tags(text).of_class("p"):
        style = dict(part.split(":") for part in word["style"].split(";"))
        left, top, width, height = (float(style[key][:-1]) / 100 for key in ("left", "top", "width", "height"))
        box = np.s_[
            int(top * 556) : int(np.ceil((top + height) * 556)) + 1, int(left * 834) : int(np.ceil((left + width) * 834)) + 1
        ]
        assert dark[box].mean() > 0.1
        seen[box] = True
    assert not dark[~seen].any()


@pytest.mark.parametrize("whole", [True, False])
def test_the_best_page_of_several_is_shown_as_it_is(tiny, report, tmp_path, whole):
    document = {"pdf": report} if whole else report
    found = tiny.explain("compass", document, method="attention")
    assert found.passage.count == 2
    assert len(found.page_words) == (1 if found.passage.number == 1 else 3)
    tiny.explain_ranking("compass", [document], tmp_path / "r.html", method="attention")
    assert [shown.size for shown in pictures_in((tmp_path / "r.html").read_text())] == [(834, 556)]


def test_on_the_command_line(report, tmp_path, capsys):
    out = tmp_path / "r.html"
    assert main(["explain", "compass", f"{report}#2", "--json", "--html", str(out), "--method", "attention"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert [word["text"] for word in result["page_words"]] == ["compass", "and", "dolphin"]
    assert [shown.size for shown in pictures_in(out.read_text())] == [(834, 556)]


def test_pages_that_are_read_as_text_and_pictures_have_no_page_words(tiny, report):
    text = tiny.explain("compass", {"pdf": report, "pages": "2", "as": "text"}, method="attention")
    assert not text.page_words
    both = tiny.explain("compass", {"pdf": report, "pages": "2", "as": "both"}, method="attention")
    assert [word.text for word in both.page_words] == ["compass", "and", "dolphin"]
    assert {word.text for word in both.words if word.side == "document"} >= {"compass", "dolphin"}
    assert not tiny.explain("compass", noise(80, 80), method="attention").page_words


def test_a_page_that_has_changed_is_shown_as_the_model_saw_it(tiny, tmp_path):
    path = tmp_path / "scans.cbz"

    def write(seed):
        with zipfile.ZipFile(path, "w") as archive:
            for number in range(2):
                file = io.BytesIO()
                noise(300, 200, seed + number).save(file, "PNG")
                archive.writestr(f"{number}.png", file.getvalue())

    write(1)
    first, _ = read_pages(path)
    found = tiny.explain("q", first, method="attention")
    assert not found.notes
    assert [shown.size for shown in pictures_in(found.to_html())] == [(300, 200)]
    light = replace(found.encoding, pictures=[replace(found.encoding.pictures[0], original=None)])
    write(5)
    changed = attach_page(replace(found, encoding=light), first)
    assert "has changed since it was explained" in changed.notes[-1]
    assert "shown as the model saw it" in changed.to_html()
    path.unlink()
    assert "cannot be read" in of_passage(replace(found, encoding=light), found.passage).notes[-1]


def test_originals_change_no_patch_and_no_comparison():
    keeping = ImageSettings(keep_pixels=KEPT_PIXELS)
    assert keeping == ImageSettings()
    assert repr(keeping) == repr(ImageSettings())
    plain, kept = (prepare_picture(noise(200, 100), settings) for settings in (ImageSettings(), keeping))
    assert plain.digest == kept.digest
    assert plain.original is None
    assert Image.open(io.BytesIO(kept.original)).size == (200, 100)
    for wrong in (-1, 1.5, True):
        with pytest.raises(ValueError, match="keep_pixels is"):
            ImageSettings(keep_pixels=wrong)
    uri = "data:image/png;base64," + base64.b64encode(kept.original).decode()
    assert prepare_picture(uri, keeping).original_size == (200, 100)
