"""Words, pictures and pages: everything lands where it belongs, and nothing breaks what shows it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m0 import Reranker
from m0.cli.main import main
from m0.errors import InputError
from m0.explain.contrast import _drop_unneeded
from m0.explain.explanation import PictureRelevance
from m0.explain.html import page
from m0.explain.show import heat_map, to_terminal
from m0.inputs.images import ImageSettings, prepare_picture
from m0.interp.words import assign_tokens_to_spans, find_sentences, find_words
from tests.conftest import noise


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's a well-known fact, isn't it?", ["It's", "a", "well-known", "fact", ",", "isn't", "it", "?"]),
        ("東京タワーはすごい。", ["東", "京", "タワー", "はすごい", "。"]),
        ("हिन्दी में लिखा", ["हिन्दी", "में", "लिखा"]),
        ("مرحبا بالعالم", ["مرحبا", "بالعالم"]),
        ("Größe: 12 µm", ["Größe", ":", "12", "µm"]),
    ],
)
def test_words(tiny, text, words):
    encoding = tiny.encode("query", text)
    assert [span.text for span in find_words(encoding) if span.side == "document"] == words


def test_thai_is_cut_where_the_tokenizer_cuts(tiny):
    text = "สวัสดีครับผมชื่อ"
    spans = [span for span in find_words(tiny.encode("q", text)) if span.side == "document"]
    assert "".join(span.text for span in spans) == text
    assert len(spans) > 1


def test_sentences(tiny):
    encoding = tiny.encode("q", "One. Two! 3.5 is a number\nA line。次の文。")
    assert [span.text for span in find_sentences(encoding)][:-1] == ["One.", "Two!", "3.5 is a number", "A line。", "次の文。"]


@pytest.mark.parametrize(
    "text", ["plain words", "😀 emoji 👩‍👩‍👧 and ğ", "東京 is Tokyo", "  leading blanks", "a\n\n\nb", "ที่นี่", "wait... --"]
)
def test_every_token_of_a_text_belongs_to_one_word(tiny, text):
    encoding = tiny.encode("q", text)
    spans = find_words(encoding)
    for origin, owner in zip(encoding.origins, assign_tokens_to_spans(encoding, spans), strict=True):
        assert (owner is not None) == (origin.kind == "text")
        if owner is not None and text[origin.start : origin.end].strip() and origin.side == "document":
            assert spans[owner].start < origin.end
            assert spans[owner].end > origin.start


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("❤️ 👩‍👩‍👧 🇩🇪🇫🇷 👍🏽", ["❤️", "👩‍👩‍👧", "🇩🇪", "🇫🇷", "👍🏽"]),
        ("می‌خواهم", ["می‌خواهم"]),
        ("co\u00adoperate", ["co\u00adoperate"]),
    ],
)
def test_what_is_seen_as_one_sign_is_one_word(text, words):
    from m0.interp.words import _split_into_words

    assert [text[start:end] for start, end, _ in _split_into_words(text)] == words


def test_marks_that_share_a_token_can_be_left_out(nano):
    found = nano.explain("what", "wait... what?! yes -- no", method="occlusion")
    assert all(word.relevance != 0 for word in found.words)


SIZES = [(60, 90), (56, 56), (1000, 700), (113, 59), (900, 300)]


@pytest.mark.parametrize("size", SIZES)
def test_pixels_add_up_to_cells(size):
    picture = prepare_picture(noise(*size), ImageSettings(max_pixels=28 * 28 * 30))
    cells = torch.rand(picture.token_grid, dtype=torch.float64) - 0.5
    pixels = PictureRelevance("document", 0, picture, cells).pixels
    assert pixels.shape == (size[1], size[0])
    assert pixels.sum() == pytest.approx(float(cells.sum()))
    one = torch.zeros(picture.token_grid, dtype=torch.float64)
    one[1, 0] = 1.0
    found = PictureRelevance("document", 0, picture, one).pixels
    left, top, right, bottom = picture.cell_box(1, 0)
    rows, columns = found.nonzero()
    assert rows.min() == int(top)
    assert rows.max() == int(np.ceil(bottom)) - 1
    assert columns.min() == int(left)
    assert columns.max() == int(np.ceil(right)) - 1


@pytest.mark.parametrize("size", SIZES)
def test_what_is_informative_is_where_it_was_drawn(tiny, size):
    """Grey all over but for one cell: the relevance of the pixels lies in its box, however the picture was resized."""
    settings = ImageSettings(max_pixels=28 * 28 * 30)
    blank = Image.new("RGB", size, (127, 127, 127))
    rows, columns = prepare_picture(blank, settings).token_grid
    row, column = rows // 2, columns - 1
    left, top, right, bottom = (round(edge) for edge in prepare_picture(blank, settings).cell_box(row, column))
    blank.paste(noise(right - left, bottom - top, 5), (left, top))
    picture = prepare_picture(blank, settings)
    found = tiny.explain("question", [picture], method="integrated_gradients", nodes=8, pixels=True)
    shown = found.pictures[0]
    assert int(shown.cells.abs().argmax()) == row * columns + column
    pixels = np.abs(shown.pixels)
    assert pixels[top:bottom, left:right].sum() > 0.85 * pixels.sum()


def test_heat_maps_show_on_white_and_on_black(tmp_path):
    for shade in (0, 255):
        picture = prepare_picture(Image.new("RGB", (112, 84), (shade,) * 3), ImageSettings())
        cells = torch.zeros(picture.token_grid, dtype=torch.float64)
        cells[0, 0], cells[2, 3] = 1.0, -1.0
        image = np.asarray(heat_map(PictureRelevance("document", 0, picture, cells)), dtype=int)
        plain, warm, cold = image[40, 50], image[5, 5], image[80, 105]
        assert warm[0] - warm[2] > 100  # orange
        assert cold[2] - cold[0] > 60  # blue
        assert max(abs(plain - plain.mean())) == 0  # grey
        assert min(np.abs(warm - plain).max(), np.abs(cold - plain).max()) > 50


def test_terminal(tiny):
    found = tiny.explain("red heart", ["A heart", noise(84, 56, 2), "red"], method="occlusion")
    plain = to_terminal(found, color=False)
    assert "\x1b" not in plain
    assert "score" in plain
    assert "[picture 0, 84 x 56 pixels, 3 x 4 cells" in plain or "[picture 0, 84 x 56 pixels, 2 x 3 cells" in plain
    assert "\x1b[48;2;" in to_terminal(found)
    assert str(found) == plain  # not a terminal
    steering = tiny.explain("q", "\x1b]0;title\x07 \x1b[31mred", method="attention")
    assert "\x1b" not in to_terminal(steering, color=False)


def test_json_is_json_and_complete(tiny):
    found = tiny.explain("red heart", ["A heart", noise(84, 56, 2)], method="attnlrp")
    data = json.loads(json.dumps(found.to_json()))
    assert sum(token["relevance"] for token in data["tokens"]) == pytest.approx(float(found.tokens.sum()))
    assert [word["text"] for word in data["words"] if word["side"] == "query"] == ["red", "heart"]
    assert len(data["interaction"]["values"]) == 2
    assert data["ledger"]["logit"] == pytest.approx(found.logit)


def test_interaction_is_laid_over_words_and_cells(tiny):
    found = tiny.explain("red heart", ["A heart", noise(84, 56, 2)], method="attnlrp")
    asked, shown, values = found.interaction.by_word(found.encoding)
    assert [span.text for span in asked] == ["red", "heart"]
    assert [span.text for span in shown] == ["A", "heart"]
    _, cells = found.interaction.on_picture(found.encoding, 0)
    assert cells.shape == (2, *found.pictures[0].cells.shape)
    texts = float(values.sum() + cells.sum())
    frames = [i for i in found.interaction.document_tokens if found.encoding.origins[i].kind == "template"]
    assert not frames
    assert texts == pytest.approx(float(found.interaction.values.sum()))


def test_a_picture_of_the_query_has_a_row_of_its_own(tiny):
    found = tiny.explain(["red", noise(56, 56, 3)], ["A heart", noise(84, 56, 2)], method="attnlrp")
    asked, _, values = found.interaction.by_word(found.encoding)
    assert [span.text for span in asked] == ["red", "picture 1"]
    assert values.shape == (2, 2)
    _, cells = found.interaction.on_picture(found.encoding, 0)
    assert float(values.sum() + cells.sum()) == pytest.approx(float(found.interaction.values.sum()))
    assert '"query": ["2", "picture 1"]' in found.to_html()
    assert 'data-n="picture 1"' in found.to_html()


def test_png_needs_a_picture_and_a_place(tiny, tmp_path):
    with_picture = tiny.explain("q", [noise(84, 56, 2)], method="attention")
    (path,) = with_picture.to_png(tmp_path / "new" / "folder")
    assert Image.open(path).size == (84, 56)
    with pytest.raises(InputError, match="no picture"):
        tiny.explain("q", "d", method="attention").to_png(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        with_picture.to_png(tmp_path / "file")
    with pytest.raises(InputError, match="cannot be written"):
        with_picture.to_html(tmp_path / "file" / "page.html")


def test_a_difference_says_who_is_ahead(tiny):
    found = tiny.explain_difference("red heart", "A heart that is red.", "Nothing here")
    ours = tiny.logits([("red heart", "A heart that is red."), ("red heart", "Nothing here")])
    assert found.logit == pytest.approx(ours[0] - ours[1], abs=1e-5)
    assert {text for text, _, _ in found.query_words} == {"red", "heart"}
    assert "better" in str(found)


def test_evidence_cannot_be_made_smaller(nano):
    found = nano.minimal_evidence("red heart", "a table, a red heart and a dog", keep=0.9)
    from m0.explain.perturb import MaskedModel, find_players
    from m0.model.head import relevance

    encoding = nano.encode("red heart", "a table, a red heart and a dog")
    players = find_players(encoding, "word", ("document",))
    game = MaskedModel(nano, encoding, players)
    numbers = {player: number for number, player in enumerate(players)}

    def score(left_out):
        return float(relevance(game.logits([left_out])[0]))

    everyone, kept = set(range(len(players))), {numbers[player] for player in found.sufficient}
    assert score(everyone - kept) == pytest.approx(found.sufficient_score)
    assert found.sufficient_score >= 0.9 * found.score
    for number in kept:
        assert score(everyone - (kept - {number})) < 0.9 * found.score
    gone = {numbers[player] for player in found.necessary}
    if found.reached:
        assert found.necessary_score < found.score / 2
        for number in gone:
            assert score(gone - {number}) >= found.score / 2
    for wrong in ({"keep": 0}, {"keep": "x"}, {"threshold": 7}):
        with pytest.raises(InputError, match="must be above 0"):
            nano.minimal_evidence("a", "b", **wrong)


def test_a_report_of_a_ranking(tiny, tmp_path):
    documents = ["A heart", {"image": noise(60, 60, 1)}, "something else"]
    ranking = tiny.explain_ranking("heart", documents, tmp_path / "report.html", names=["one", "two", "three"])
    text = (tmp_path / "report.html").read_text()
    names = ["one", "two", "three"]
    assert [text.index(f"{place}. {names[result.index]}") for place, result in enumerate(ranking, 1)] == sorted(
        text.index(f"{place}. {names[result.index]}") for place, result in enumerate(ranking, 1)
    )
    assert [result.document for result in ranking] == [documents[result.index] for result in ranking]
    with pytest.raises(InputError, match="names for"):
        page([], names=["one"])
    with pytest.raises(InputError, match="names for"):
        tiny.explain_ranking("heart", documents, tmp_path / "report.html", names=["one"])


def test_command_line(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a red heart")
    noise(64, 64, 3).save(tmp_path / "b.png")
    arguments = ["explain", "red heart", str(tmp_path / "a.txt"), str(tmp_path / "b.png")]
    assert main([*arguments, "--html", str(tmp_path / "report.html"), "--png", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "a.txt" in shown
    assert "explained by" in shown
    assert (tmp_path / "report.html").stat().st_size > 1000
    assert len(list((tmp_path / "out").rglob("*.png"))) == 1
    assert main([*arguments, "--json", "--method", "attention", "--top-n", "1"]) == 0
    assert len(json.loads(capsys.readouterr().out)["results"]) == 1
    assert main([*arguments, "--method", "tea leaves"]) == 2
    assert "must be one of" in capsys.readouterr().err
    assert main(["explain", "q", str(tmp_path / "missing.txt")]) == 2
    assert main([*arguments, "--pixels", "--method", "gradient_input"]) == 0
    assert main([*arguments, "--unit", "sentence", "--method", "occlusion"]) == 0
    assert main([*arguments, "--unit", "sentence"]) == 2
    assert "no option 'unit'" in capsys.readouterr().err
    assert main([*arguments, "--html", str(tmp_path / "no" / "such" / "page.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


LONG = "filler words " * 40


def test_one_document_that_is_too_long_does_not_cost_the_others(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("m0.explain.flow.MAX_PATTERN_BYTES", 200_000)
    (tmp_path / "a.txt").write_text("a red heart")
    (tmp_path / "long.txt").write_text(LONG)
    assert (
        main(["explain", "heart", str(tmp_path), "--json", "--method", "attnlrp", "--html", str(tmp_path / "report.html")]) == 1
    )
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert [Path(result["name"]).name for result in found["results"]] == ["a.txt"]
    assert [Path(failed["name"]).name for failed in found["failed"]] == ["long.txt"]
    assert "long.txt: attention patterns" in output.err
    assert "a red heart" not in (tmp_path / "report.html").read_text()  # words stand in spans of their own
    assert "heart" in (tmp_path / "report.html").read_text()


def test_reports_skip_or_raise_like_rankings(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("m0.explain.flow.MAX_PATTERN_BYTES", 200_000)
    documents = ["a red heart", LONG, "a pie"]
    with pytest.raises(InputError, match="document 1: attention patterns"):
        tiny.explain_ranking("heart", documents, tmp_path / "r.html", method="attnlrp")
    ranking = tiny.explain_ranking("heart", [*documents, b"no picture"], tmp_path / "r.html", method="attnlrp", on_error="skip")
    assert sorted(result.index for result in ranking) == [0, 2]
    assert sorted(failed.index for failed in ranking.failed) == [1, 3]
    with pytest.raises(InputError, match="documents is str"):
        tiny.explain_ranking("heart", "abc", tmp_path / "r.html")
    with pytest.raises(InputError, match="has no option 'unit'"):
        tiny.explain_ranking("heart", documents, tmp_path / "r.html", unit="word")


def test_reports_explain_what_was_ranked(tiny, tmp_path):
    documents = [LONG + " a heart", "a pie"]
    ranking = tiny.explain_ranking("heart", documents, tmp_path / "r.html", max_length=40)
    assert [r.score for r in ranking] == [r.score for r in tiny.rank("heart", documents, max_length=40)]
    page = (tmp_path / "r.html").read_text()
    for place, result in enumerate(ranking, 1):
        assert f"{place}. {result.index}: score {result.score:.4f}" in page


def test_sixteen_bit_reports_say_what_was_ranked(tmp_path):
    reranker = Reranker.from_pretrained("m0-nano", dtype="bfloat16")
    (result,) = reranker.explain_ranking("compass", [Path("docs/demo/pictures/compass.png")], tmp_path / "r.html")
    (expected,) = reranker.rank("compass", [Path("docs/demo/pictures/compass.png")])
    assert result.score == expected.score
    assert f"ranked by score {result.score:.4f}, logit {result.logit:.3f}" in (tmp_path / "r.html").read_text()


def test_reports_keep_what_is_there(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a red heart")
    assert main(["explain", "heart", str(tmp_path), "--html", str(tmp_path / "a.txt")]) == 2
    assert "is one of the documents" in capsys.readouterr().err
    assert (tmp_path / "a.txt").read_text() == "a red heart"
    assert main(["explain", "heart", str(tmp_path), "--html", str(tmp_path)]) == 2
    assert "it is a folder" in capsys.readouterr().err
    assert main(["explain", "heart", str(tmp_path), "--png", str(tmp_path / "a.txt")]) == 2
    assert "is no folder" in capsys.readouterr().err


def test_odd_names_of_files(tmp_path, capsys):
    folder = tmp_path / "docs"
    folder.mkdir()
    noise(60, 60).save(folder / "x.png")
    os.rename(folder / "x.png", folder / "bad\udcff\x1b[31m.png")
    assert main(["explain", "heart", str(folder), "--html", str(tmp_path / "r.html"), "--png", str(tmp_path / "p")]) == 0
    assert "\x1b[31m.png" not in capsys.readouterr().out
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "\x1b" not in page
    assert r"bad\udcff" in page


def test_explaining_inside_inference_mode(tiny_directory):
    with torch.inference_mode():
        for dtype in ("float32", "bfloat16"):
            reranker = Reranker.from_pretrained(tiny_directory, dtype=dtype)
            assert reranker.explain("heart", "a red heart").tokens.abs().sum() > 0


def test_evidence_that_no_member_can_be_spared_from():
    """One that is needed beside others may be spared once those are gone."""
    enough = [{1, 2, 3}, {2, 3}, {1, 2}, {2}]
    assert _drop_unneeded([1, 2, 3], lambda some: some in enough) == [2]
    # The last is tried first and is needed; then the first goes, and then the last can go.
    enough = [{1, 2, 3}, {2, 3}, {2}]
    assert _drop_unneeded([1, 2, 3], lambda some: some in enough) == [2]
