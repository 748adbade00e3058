"""Documents of many passages in a ranking: the scores of their prompts one by one, put together."""

import io
import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import m0.engine.ranking
from m0 import Cascade, Document, Limits, Reranker, RunOptions
from m0.engine.prefix_cache import DocumentCache
from m0.engine.ranking import rank
from m0.errors import InputError
from m0.inputs import read_pages
from m0.inputs.ahead import units_of
from m0.inputs.images import ImageSettings, Picture
from m0.inputs.passages import PAGES, Passages
from m0.interp import zero
from tests.conftest import noise
from tests.inputs.pdfs import DATA, page, pages, words
from tests.inputs.test_ahead import CHAPTERS, manual, tiff

ROOT = Path(__file__).parents[2]
QUERY = "how often must the network be configured"
LONG = " ".join(f"In chapter {number} the network number {number} is configured, or it is not." for number in range(30))
HOW = Passages(tokens=40, overlap=8)
SMALL = {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 9}
CLOSE = {"abs": 2e-5}


@pytest.fixture
def small(tiny_directory):
    return Reranker.from_pretrained(tiny_directory, dtype="float32", **SMALL)


def by_hand(reranker, document, how=PAGES, query=QUERY):
    """The logit of each passage, from prompts of their own."""
    found = units_of(document, reranker.image_settings, how, reranker.prompt.tokenizer)
    return [reranker.logits([(query, unit.read())])[0] for unit in found], found


def mixed():
    """One of each kind."""
    return [
        "a short text",
        LONG,
        {"image": noise(84, 56, 1)},
        tiff(3),
        ["a list of", noise(56, 56, 2), LONG[:900]],
        Document({"image": io.BytesIO(tiff(4))}, id="scan", metadata={"shelf": 3}),
        *read_pages(tiff(2), settings=ImageSettings(**SMALL)),
        {"pdf": tiff(3), "pages": "2-3"},
    ]


# --- what scores are --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["max", "mean", "first"])
def test_scores_are_those_of_single_prompts(small, score):
    how = Passages(tokens=40, overlap=8, score=score, best=2)
    ranking = small.rank(QUERY, mixed(), passages=how)
    assert sorted(result.index for result in ranking) == list(range(len(mixed())))
    assert [result.logit for result in ranking] == sorted((result.logit for result in ranking), reverse=True)
    several = 0
    for result in ranking:
        logits, units = by_hand(small, result.document, how)
        highest = sorted(logits, reverse=True)
        expected = {"max": highest[0], "first": logits[0], "mean": sum(highest[:2]) / len(highest[:2])}[score]
        assert result.logit == pytest.approx(expected, **CLOSE)
        several += len(units) > 1
        if result.passage is not None:
            assert (result.passage.number, result.passage.count) == (
                1 if score == "first" else logits.index(highest[0]) + 1,
                len(units),
            )
            assert result.passage.spans == units[result.passage.number - 1].passage.spans
    assert several >= 5
    together = small.logits([(QUERY, document) for document in mixed()], passages=how)
    assert {result.index: result.logit for result in ranking} == pytest.approx(dict(enumerate(together)), **CLOSE)
    scores = small.score([(QUERY, document) for document in mixed()], passages=how)
    assert {result.index: result.score for result in ranking} == pytest.approx(dict(enumerate(scores)), **CLOSE)


def test_pages_are_passages_by_themselves_and_texts_stay_whole(small):
    ranking = {result.index: result for result in small.rank(QUERY, mixed())}
    for index, document in enumerate(mixed()):
        logits, _ = by_hand(small, document)
        assert ranking[index].logit == pytest.approx(max(logits), **CLOSE)
        assert (ranking[index].page is not None) == (index in (3, 5, 6, 7, 8))
    assert ranking[1].passage is None
    assert ranking[5].id == "scan"
    assert ranking[5].metadata == {"shelf": 3}
    assert ranking[5].passage.count == 4
    assert [ranking[index].page.number for index in (6, 7)] == [1, 2]
    assert ranking[8].page.number in (2, 3)
    assert ranking[8].passage.count == 2
    again = {result.index: result.logit for result in small.rank(QUERY, mixed(), passages="pages")}
    assert again == pytest.approx({index: result.logit for index, result in ranking.items()}, **CLOSE)


def test_the_passage_that_won_is_named(nano):
    """With a model that has learnt something."""
    text = "A needle of iron points north. " * 30 + "An apple is a fruit that grows on trees. " + "Water runs downhill. " * 30
    (result,) = nano.rank("which fruit grows on trees", [text], passages=HOW)
    (span,) = result.passage.spans
    assert "An apple is a fruit" in text[span.start : span.end]
    assert result.score > nano.score([("which fruit grows on trees", text)])[0]
    assert result.tokens["document"] <= 42
    result, other = nano.rank(
        "the seal is worn", [{"pdf": manual(), "as": "text"}, {"pdf": manual(), "pages": "1,3", "as": "text"}]
    )
    assert (result.index, result.page.number, result.page.pages) == (0, 2, 3)
    assert other.page.number in (1, 3)
    json.dumps(result.passage.to_json())
    assert pickle.loads(pickle.dumps(result)).passage == result.passage


def test_prompts_are_the_same_as_without_passages(small):
    for document in ("a short text", noise(84, 56), ["both", noise(56, 56)]):
        whole = small.logits([(QUERY, document)])
        assert small.logits([(QUERY, document)], passages=Passages()) == whole
        (result,) = small.rank(QUERY, [document], passages=Passages())
        assert [result.logit] == whole


@pytest.mark.parametrize("as_", ["text", "both"])
def test_pages_times_passages(small, as_):
    document = {"pdf": manual(), "as": as_}
    how = Passages(tokens=5, overlap=0)
    logits, units = by_hand(small, document, how)
    assert len(units) >= 6
    (result,) = small.rank(QUERY, [document], passages=how)
    assert result.logit == pytest.approx(max(logits), **CLOSE)
    best = units[result.passage.number - 1].passage
    assert result.passage == best
    assert result.page.number == best.page.number
    text = list(read_pages(manual()))[best.page.number - 1].text()
    assert text == CHAPTERS[best.page.number - 1]


# --- how it is done ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [PAGES, HOW], ids=["pages", "passages"])
def test_scored_in_pieces_the_same(small, how, monkeypatch):
    """A document's passages may be scored in several rounds."""
    whole = small.rank(QUERY, mixed(), passages=how)
    monkeypatch.setattr(m0.engine.ranking, "CHUNK_BATCHES", 1)
    pieces = small.rank(QUERY, mixed(), passages=how, batch_tokens=64)
    assert [(r.index, r.passage) for r in pieces] == [(r.index, r.passage) for r in whole]
    assert [r.logit for r in pieces] == pytest.approx([r.logit for r in whole], **CLOSE)


@pytest.mark.parametrize("top_n", [1, 3, None])
def test_a_stream_of_documents_gives_the_same(small, top_n, monkeypatch):
    monkeypatch.setattr(m0.engine.ranking, "UNSORTED_RESULTS", 0)
    monkeypatch.setattr(m0.engine.ranking, "CHUNK_BATCHES", 1)
    documents = [*mixed(), *(f"document {number} of many" for number in range(20)), ""]
    run = RunOptions(batch_tokens=128)
    listed = rank(small, QUERY, documents, None, "skip", None, Limits(), run, HOW)
    streamed = rank(small, QUERY, iter(documents), top_n, "skip", None, Limits(), run, HOW)
    assert [(r.index, r.logit, r.passage) for r in streamed] == [(r.index, r.logit, r.passage) for r in listed][:top_n]
    assert [f.index for f in streamed.failed] == [len(documents) - 1]
    with pytest.raises(InputError, match="the list of documents is empty"):
        rank(small, QUERY, iter([]), top_n, "skip", None, Limits(), run, HOW)


def test_a_bad_page_fails_its_document_and_no_other(small, monkeypatch):
    monkeypatch.setattr(m0.engine.ranking, "CHUNK_BATCHES", 1)
    documents = [tiff(2), Document(tiff(6, broken=5), id="worn"), "after", {"pdf": b"%PDF-1.7 no"}, tiff(1)]
    for tokens in (16, None):  # some of its pages are scored already, or none
        ranking = small.rank(QUERY, documents, on_error="skip", batch_tokens=tokens)
        assert sorted(result.index for result in ranking) == [0, 2, 4]
        assert [(failed.index, failed.id) for failed in ranking.failed] == [(1, "worn"), (3, None)]
        assert ranking.failed[0].document is documents[1]
        assert "#5" in ranking.failed[0].error
        for result in ranking:
            assert result.logit == pytest.approx(max(by_hand(small, result.document)[0]), **CLOSE)
        with pytest.raises(InputError, match=r"^document 1: .*#5"):
            small.rank(QUERY, documents, batch_tokens=tokens)
    with pytest.raises(InputError, match=r"^document 1: .*#5"):
        small.prepare(documents)


@pytest.mark.parametrize(
    "cascade", [Cascade(keep=2, depth=1), Cascade(keep=2, max_pixels=28 * 28 * 4)], ids=["depth", "pixels"]
)
def test_a_cascade_keeps_documents_not_passages(small, cascade):
    whole = {result.index: result for result in small.rank(QUERY, mixed(), passages=HOW)}
    ranking = small.rank(QUERY, mixed(), passages=HOW, cascade=cascade)
    assert [result.approximate for result in ranking] == [False] * 2 + [True] * (len(mixed()) - 2)
    for result in ranking[:2]:
        assert result.logit == pytest.approx(whole[result.index].logit, **CLOSE)
        assert result.passage == whole[result.index].passage
    every = small.rank(QUERY, mixed(), passages=HOW, cascade=Cascade(keep=99, depth=1))
    assert [result.index for result in every] == [result.index for result in small.rank(QUERY, mixed(), passages=HOW)]


def test_recording_sees_every_passage(small):
    document = tiff(3)
    logits, _ = by_hand(small, document)
    with small.record("decoder.layers.1.attention.z") as cache:
        (result,) = small.rank(QUERY, [document])
    assert result.logit == pytest.approx(max(logits), **CLOSE)
    assert len(cache["decoder.layers.1.attention.z"]) == 3
    with small.edit({"decoder.layers.1.attention.z": zero}):
        (changed,) = small.rank(QUERY, [document])
        edited = small.logits([(QUERY, document)])
    assert changed.logit == pytest.approx(edited[0], **CLOSE)
    assert changed.logit != pytest.approx(result.logit, **CLOSE)


def test_prefixes_of_passages_are_cached(small):
    documents = mixed()
    plain = {result.index: result for result in small.rank(QUERY, documents, passages=HOW)}
    count = sum(len(units_of(document, small.image_settings, HOW, small.prompt.tokenizer)) for document in mixed())
    small.documents = DocumentCache()
    computed = small.prepare(mixed(), passages=HOW)
    assert 1 < computed <= count  # equal pages are one
    assert small.prepare(mixed(), passages=HOW) == 0
    before = small.documents.counts.hits
    cached = small.rank(QUERY, mixed(), passages=HOW)
    assert small.documents.counts.hits > before
    assert small.documents.counts.computed == computed
    for result in cached:
        assert result.logit == pytest.approx(plain[result.index].logit, **CLOSE)
        assert result.passage == plain[result.index].passage


def test_eight_threads_that_rank_pdfs(small):
    pytest.importorskip("pypdfium2")
    several = pages([words(f"page {number} of the manual", 10, 20 + 30 * number, 14) for number in range(5)])
    documents = [
        DATA / "form.pdf",
        {"pdf": DATA / "userunit.pdf"},
        {"pdf": several},
        {"pdf": several, "as": "text"},
        DATA / "orientations_thumbnail.tif",
    ]

    def logits(number):
        ranking = small.rank(QUERY, documents[number % 5 :] + documents[: number % 5])
        return {(result.index + number % 5) % 5: (result.logit, result.page.number) for result in ranking}

    alone = logits(0)
    assert len(alone) == 5
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(logits, range(16)))
    for found in together:
        for index, (logit, number) in found.items():
            assert logit == pytest.approx(alone[index][0], **CLOSE)
            assert number == alone[index][1]


PROGRAM = """
import json, sys
import torch
from m0 import Reranker
from m0.engine.parallel import processes
from m0.errors import M0Error
from tests.engine.test_ranking_passages import HOW, QUERY, SMALL, mixed, tiff

with processes() as first:
    reranker = Reranker.from_pretrained(sys.argv[1], dtype="float32", **SMALL)
    rank = torch.distributed.get_rank()
    found = {"sizes": []}
    reranker.model.decoder.register_forward_pre_hook(lambda module, args: found["sizes"].append(len(args[0])))
    # What one process cannot read none ranks.
    documents = [*mixed(), tiff(3, broken=None if first else 2)]
    ranking = reranker.rank(QUERY, documents, shared=True, passages=HOW, on_error="skip")
    found["logits"] = {r.index: r.logit for r in ranking}
    found["passages"] = {r.index: r.passage and r.passage.number for r in ranking}
    found["failed"] = [(f.index, f.error) for f in ranking.failed]
    with open(f"{sys.argv[2]}/{rank}.json", "w") as file:
        json.dump(found, file)
"""


def test_shared_over_processes(small, tiny_directory, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", str(tmp_path / "program.py"), str(tiny_directory), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = small.rank(QUERY, mixed(), passages=HOW)
    for number in range(2):
        found = json.loads((tmp_path / f"{number}.json").read_text())
        assert found["logits"] == pytest.approx({str(r.index): r.logit for r in alone}, **CLOSE)
        assert found["passages"] == {str(r.index): r.passage and r.passage.number for r in alone}
        assert [index for index, _ in found["failed"]] == [len(mixed())]
        assert "#2" in found["failed"][0][1]
        assert found["sizes"]


# --- explanations -----------------------------------------------------------------------------------------------------


def test_the_passage_that_won_is_explained(small, monkeypatch):
    for document, how in ((tiff(3), PAGES), (LONG, HOW), ({"pdf": tiff(3)}, HOW)):
        (result,) = small.rank(QUERY, [document], passages=how)
        for batches in (0, 8):  # scored one by one, and together
            monkeypatch.setattr("m0.engine.passages.CHUNK_BATCHES", batches)
            explained = small.explain(QUERY, document, passages=how)
            assert explained.passage == result.passage
            assert explained.logit == pytest.approx(result.logit, abs=1e-4)
            number, count = result.passage.number, result.passage.count
            assert f"this is passage {number} of {count}, which stands for the document." in explained.notes
            found = explained.to_json()["passage"]
            assert (found["number"], found["count"]) == (number, count)
            json.dumps(explained.to_json())
    assert "passage" not in small.explain(QUERY, "words").to_json()


def test_a_ranking_is_explained_by_passages(small, tmp_path):
    documents = [LONG, tiff(3), Document("short", id="s"), tiff(3, broken=3)]
    ranking = small.explain_ranking(QUERY, documents, tmp_path / "a.html", passages=HOW, on_error="skip")
    plain = small.rank(QUERY, documents, passages=HOW, on_error="skip")
    assert [(r.index, r.passage) for r in ranking] == [(r.index, r.passage) for r in plain]
    assert [f.index for f in ranking.failed] == [3]
    html = (tmp_path / "a.html").read_text(encoding="utf-8")
    for result in ranking:
        if result.passage.count > 1:
            assert f"this is passage {result.passage.number} of {result.passage.count}" in html


def test_differences_and_evidence(small):
    difference = small.explain_difference(QUERY, LONG, tiff(3), passages=HOW)
    found = {r.index: r.passage for r in small.rank(QUERY, [LONG, tiff(3)], passages=HOW)}
    assert (difference.better.passage, difference.worse.passage) == (found[0], found[1])
    evidence = small.minimal_evidence(QUERY, LONG, passages=HOW)
    assert evidence.passage == found[0]
    (result,) = small.rank(QUERY, [LONG], passages=HOW)
    assert evidence.score == pytest.approx(result.score, abs=1e-5)
    assert str(evidence).startswith(f"score {evidence.score:.4f} of passage {found[0].number} of {found[0].count}\n")
    scan = small.minimal_evidence(QUERY, tiff(3))
    assert scan.passage == found[1]
    plain = small.minimal_evidence(QUERY, "short words")
    assert plain.passage is None
    assert " of passage " not in str(plain)


BOX, CROP = "/MediaBox [-20 -30 300 200]", "/CropBox [50 50 250 150]"


@pytest.mark.parametrize("extra", ["", "/Rotate 90", "/Rotate 180", "/Rotate 270", "/Rotate 90 /UserUnit 3"])
def test_cells_in_the_coordinates_of_the_page(tiny, extra):
    """A page with one dark word: the cells that are dark are those of the word."""
    pytest.importorskip("pypdfium2")
    data = page(words("Hamburg", 110, 100), f"{BOX} {CROP}", extra)
    explained = tiny.explain(QUERY, data, method="attention")
    (shown,) = explained.pictures
    rows, columns = shown.cells.shape
    (word,) = next(iter(read_pages(data))).words()
    side = shown.picture.settings.factor
    dark = []
    for row in range(rows):
        for column in range(columns):
            box = explained.page_box(0, row, column)
            assert box.page[0] < box.page[2]
            assert box.page[1] < box.page[3]
            assert 50 - 1e-2 <= box.pdf[0] < box.pdf[2] <= 250 + 1e-2
            assert 50 - 1e-2 <= box.pdf[1] < box.pdf[3] <= 150 + 1e-2
            if shown.picture.pixels[row * side : (row + 1) * side, column * side : (column + 1) * side].min() < 100:
                dark.append(box)
    for kind, expected in (("page", word.box), ("pdf", word.pdf_box)):
        boxes = [getattr(box, kind) for box in dark]
        around = (*(min(box[n] for box in boxes) for n in (0, 1)), *(max(box[n] for box in boxes) for n in (2, 3)))
        cell = [boxes[0][n + 2] - boxes[0][n] for n in (0, 1)] * 2
        for found, wanted, wide in zip(around, expected, cell, strict=True):
            assert abs(found - wanted) <= wide * 1.25
    ends = explained.page_box(0, 0, 0).page[:2], explained.page_box(0, rows - 1, columns - 1).page[2:]
    assert ends[0] == (0, 0)
    assert ends[1] == pytest.approx(explained.passage.page.size, abs=0.4)
    (found,) = explained.to_json()["pictures"]
    assert (found["page"], found["page_size"], found["scale"]) == (
        1,
        list(explained.passage.page.size),
        explained.passage.page.scale,
    )
    assert found["size"] == list(shown.picture.original_size)


def test_cells_of_what_is_no_page(tiny):
    with pytest.raises(InputError, match=r"^picture 0 is no page of a PDF; Picture\.cell_box"):
        tiny.explain(QUERY, noise(56, 56), method="attention").page_box(0, 0, 0)
    scan = tiny.explain(QUERY, tiff(2), method="attention")
    with pytest.raises(InputError, match=r"^picture 0 is no page of a PDF"):
        scan.page_box(0, 0, 0)
    assert scan.to_json()["pictures"][0]["page"] == scan.passage.page.number
    pytest.importorskip("pypdfium2")
    explained = tiny.explain(noise(56, 56), page(words("a")), method="attention")
    with pytest.raises(InputError, match=r"^picture 1 is no page"):  # the query's
        explained.page_box(1, 0, 0)
    with pytest.raises(InputError, match=r"^picture is 2, but there are 2 pictures"):
        explained.page_box(2, 0, 0)
    with pytest.raises(InputError, match="lies outside"):
        explained.page_box(0, 99, 0)


# --- what takes one prompt --------------------------------------------------------------------------------------------


def test_one_prompt_cannot_be_a_whole_file(small):
    sentence = r'has 3 pages, which are a prompt each; name one as in "pages": "1", or give them in a list to have all in one prompt\.$'
    for call in (lambda given: small.encode("q", given), small.read, lambda given: small.rank(given, ["x"])):
        with pytest.raises(InputError, match=sentence):
            call({"pdf": manual()})
    assert len(small.read([{"pdf": manual()}])) == 3
    (one,) = small.read({"pdf": manual(), "pages": "2"})
    assert isinstance(one, Picture)
    assert small.read({"pdf": manual(), "pages": "2", "as": "text"}) == [CHAPTERS[1]]
    assert len(small.read([Document({"pdf": manual()}).content, "and words"])) == 4
