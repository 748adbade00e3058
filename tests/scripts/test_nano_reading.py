"""What m0-nano is trained to read with: spelling, drawn text, the training loop."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

matplotlib = pytest.importorskip("matplotlib")
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from nano.course import Course, Muon, StageLength
from nano.pages import Drawn, Face, Style, draw_crop, draw_page
from nano.spelling import Spelling, fold, trigram_vector, trigrams_of, words_of

FACE = Face(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), 0, "DejaVu")
TEXT = "The network must be configured after installation. Check the file 2024 again."


def test_words_without_accents_and_case():
    assert words_of("Château-d'If, СЪЁМ 12.5 ΆΛΦΑς") == ["chateau", "d", "if", "съем", "12", "5", "αλφασ"]
    assert words_of("日本 है") == ["日", "本", "है"]
    assert fold("Łódź") == "lodz"
    assert trigrams_of("net") == ("^ne", "net", "et^")


def test_spelling_tells_words_apart_and_knows_inflections():
    spelling = Spelling([TEXT, "networks networking worker"])
    same, near, far = (
        float(spelling.of_word("network") @ spelling.of_word(w)) for w in ("network", "networks", "installation")
    )
    assert same == pytest.approx(1, abs=1e-6)
    assert near > 0.6
    assert abs(far) < 0.3
    assert np.linalg.norm(trigram_vector("abc")) == pytest.approx(1, abs=1e-6)
    assert trigram_vector("abc") @ trigram_vector("abd") > trigram_vector("abc") @ trigram_vector("xyz") + 0.05


@pytest.mark.parametrize("turn", [0.0, 1.5])
def test_words_lie_where_they_are_said_to_lie(turn):
    image, drawn = draw_crop(TEXT, "en", FACE, 20, (336, 112), random.Random(3), plain=True)
    assert drawn.words[:3] == ["the", "network", "must"]
    if turn:
        image, drawn = image.rotate(turn, Image.Resampling.BILINEAR, fillcolor=(255, 255, 255)), drawn.turned(turn, image.size)
    ink = 255 - np.asarray(image.convert("L"), np.float32)
    inside = np.zeros_like(ink, dtype=bool)
    for left, top, right, bottom in drawn.boxes:
        inside[max(0, round(top) - 2) : round(bottom) + 3, max(0, round(left) - 2) : round(right) + 3] = True
    assert ink[inside].sum() > 0.97 * ink.sum()  # full stops stand outside the words
    for word, box, middles in zip(drawn.words, drawn.boxes, drawn.middles, strict=True):
        assert len(middles) == len(word)
        assert all(box[0] <= x <= box[2] for x, _ in middles)
        assert [x for x, _ in middles] == sorted(x for x, _ in middles)


@pytest.mark.parametrize("layout", ["article", "columns", "list", "table", "slide"])
def test_pages_of_every_layout(layout):
    style = Style((560, 784), FACE, FACE, 16, 26, layout)
    page, drawn = draw_page("Network setup", " ".join([TEXT] * 12), "en", style, random.Random(1))
    assert page.size == (560, 784)
    assert drawn.words[:2] == ["network", "setup"]
    assert len(drawn.words) > 40
    assert all(box[0] >= 0 and box[2] <= 560 and box[3] <= 784 for box in drawn.boxes)


def test_moving_and_scaling():
    drawn = Drawn(["a"], [(10, 20, 30, 40)], [[(20, 30)]], [20]).moved(-5, 5).scaled(2, 0.5)
    assert drawn.boxes == [(10, 12.5, 50, 22.5)]
    assert drawn.middles == [[(30, 17.5)]]


def test_muon_makes_updates_orthogonal():
    matrix = torch.randn(24, 60, generator=torch.Generator().manual_seed(0))
    for given in (matrix, matrix.T):
        singular = torch.linalg.svdvals(Muon.orthogonal(given))
        assert singular.min() > 0.3
        assert singular.max() < 1.3


def test_a_course_goes_on_where_it_was(tmp_path):
    def course():
        torch.manual_seed(0)
        model = nn.Linear(3, 3)
        return model, Course(tmp_path / "course.pt", {"model": model})

    def loss(model):
        return lambda _: (model(torch.ones(1, 3)).square().sum(), {})

    model, first = course()
    first.run_stage("one", {1e-2: [model.bias]}, loss(model), StageLength(steps=5), matrices=[model.weight])
    again, second = course()
    assert second.load()
    assert second.done == {"one": 5}
    assert torch.equal(again.weight, model.weight)
    second.run_stage("one", {1e-2: [again.bias]}, loss(again), StageLength(steps=5), matrices=[again.weight])
    assert torch.equal(again.weight, model.weight), "a stage that is over is left out"
    second.run_stage("two", {1e-2: [again.bias]}, loss(again), StageLength(steps=2))
    assert second.done == {"one": 5, "two": 2}
    assert not torch.equal(again.bias, model.bias)
