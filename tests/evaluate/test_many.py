"""Many queries by documents: scores as those of `rank`, each document computed once, nothing scored twice, nothing mixed."""

import json
import weakref

import pytest
import torch

from m0 import Reranker
from m0.errors import InputError
from m0.evaluate import many, rank_many, read_queries, read_run
from m0.evaluate.digests import Digester
from m0.evaluate.score_log import END_OF_GROUP
from m0.inputs.document import Document
from m0.inputs.pages import read_pages
from m0.inputs.passages import Passages
from tests.conftest import fill_randomly, noise

QUERIES = {"q1": "number 3", "q2": "ein Apfel", "q3": "北 compass needle"}
TEXTS = {f"d{i}": f"some words about the number {i} " * (1 + i % 4) for i in range(24)}


def as_rank_says(reranker, rankings, queries, documents, **options):
    """Every score is the one that `rank` gives for the query alone."""
    for query, content in queries.items():
        alone = {r.index: r for r in reranker.rank(content, list(documents.values()), **options)}
        results = rankings.results[query]
        assert {result.index for result in results} == set(alone)
        assert [list(documents)[result.index] for result in results] == [result.id for result in results]
        for result in results:
            assert result.score == pytest.approx(alone[result.index].score, abs=1e-6)
            assert result.logit == pytest.approx(alone[result.index].logit, abs=1e-5)
            assert result.passage == alone[result.index].passage
        assert [result.logit for result in results] == sorted((result.logit for result in results), reverse=True)


def rank_with(reranker, queries=QUERIES, documents=TEXTS, **options):
    return rank_many(reranker, queries, documents, **options)


# --- scores -------------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_rank(tiny):
    rankings = rank_many(tiny, QUERIES, TEXTS, top_n=None, batch_tokens=128)
    as_rank_says(tiny, rankings, QUERIES, TEXTS)
    assert (rankings.scored, rankings.reused, rankings.failed) == (72, 0, {})


def test_pictures_among_documents_and_queries(tiny, tmp_path):
    noise(84, 56, 1).save(tmp_path / "a.png")
    documents = {"a": {"image": str(tmp_path / "a.png")}, "b": ["both", noise(56, 56, 2)], "c": "words"}
    queries = {"text": "a needle", "picture": noise(56, 84, 3), "mixed": ["like this", {"image": tmp_path / "a.png"}]}
    as_rank_says(tiny, rank_many(tiny, queries, documents), queries, documents)


def test_the_best_are_kept_and_ties_stay_as_given(tiny):
    documents = {"x": "the same", "y": "other words", "z": "the same", "w": "the same"}
    whole = rank_many(tiny, {"q": "words"}, documents, top_n=None).results["q"]
    same = [result.id for result in whole if result.id != "y"]
    assert same == ["x", "z", "w"]
    for top_n in (1, 2, 3):
        assert rank_many(tiny, {"q": "words"}, documents, top_n=top_n).results["q"] == whole[:top_n]


def test_passages(tiny, tmp_path):
    documents = {"long": " ".join(f"word{i} of a long text." for i in range(60)), "short": "a needle"}
    for how in (Passages(tokens=40, overlap=8), Passages(tokens=40, overlap=8, score="mean", best=2)):
        rankings = rank_many(tiny, QUERIES, documents, out=tmp_path / f"{how.score}.trec", passages=how)
        as_rank_says(tiny, rankings, QUERIES, documents, passages=how)
        found = next(result.passage for result in rankings.results["q1"] if result.id == "long")
        assert found.count > 3
        assert found.spans
        again = rank_many(tiny, QUERIES, documents, out=tmp_path / f"{how.score}.trec", passages=how)
        assert (again.results, again.scored) == (rankings.results, 0)  # passages come out of the log as they went in


def test_pages_of_a_file(tiny, tmp_path):
    pages = [noise(56, 84, number) for number in range(3)]
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    documents = {"file": tmp_path / "scan.tif", "text": "words"}
    rankings = rank_many(tiny, QUERIES, documents, out=tmp_path / "out.jsonl")
    as_rank_says(tiny, rankings, QUERIES, documents)
    line = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    told = next(result for result in line["results"] if result["id"] == "file")
    assert told["passage"]["page"]["pages"] == told["passage"]["count"] == 3
    assert rank_many(tiny, QUERIES, documents, out=tmp_path / "out.jsonl").results == rankings.results
    each = rank_many(tiny, QUERIES, read_pages(tmp_path / "scan.tif"))
    assert {result.id for result in each.results["q1"]} == {f"{tmp_path / 'scan.tif'}#{number}" for number in (1, 2, 3)}


# --- one schedule -------------------------------------------------------------------------------------------------------


def test_a_document_is_opened_once_and_computed_once(tiny, monkeypatch):
    import m0.inputs.ahead

    opened, tokens = [], []
    read = m0.inputs.ahead.read_parts
    monkeypatch.setattr(m0.inputs.ahead, "read_parts", lambda value, *more: opened.append(value) or read(value, *more))
    hook = tiny.model.decoder.register_forward_pre_hook(lambda _, given: tokens.append(given[0].shape[-2]))
    documents = {f"d{i}": "a long document of many words that is computed once " * 8 + str(i) for i in range(6)}
    queries = {f"q{i}": f"query {i}" for i in range(12)}
    try:
        rank_many(tiny, queries, documents)
    finally:
        hook.remove()
    assert sorted(opened) == sorted(documents.values())
    lengths = [len(tiny.encode(query, document)) for query in queries.values() for document in documents.values()]
    assert sum(tokens) < sum(lengths) / 4


def test_documents_are_not_held(tiny):
    class Text(dict):
        pass

    alive, most = weakref.WeakSet(), []

    class Texts:
        """Can be gone through twice, and makes its documents anew."""

        def __iter__(self):
            for number in range(500):
                text = Text(text=f"number {number}")
                text.__class__.__hash__ = object.__hash__
                alive.add(text)
                most.append(len(alive))
                yield Document(text, f"d{number}", {"number": number})
                del text

    rankings = rank_many(tiny, {"q": "number 7"}, Texts(), top_n=3, batch_tokens=32)
    assert len(most) == 1000
    assert max(most) < 200
    assert [result.metadata["number"] for result in rankings.results["q"]] == [result.index for result in rankings.results["q"]]


def test_a_document_with_too_many_prompts_for_one_step(tiny, tmp_path, monkeypatch):
    queries = {f"q{i}": f"query number {i}" for i in range(9)}
    whole = rank_many(tiny, queries, TEXTS)
    monkeypatch.setattr(many, "MAX_WAITING_TOKENS", 150)
    divided = rank_many(tiny, queries, TEXTS, out=tmp_path / "out.trec", batch_tokens=128)
    for query, results in whole.results.items():
        assert {result.id: result.logit for result in divided.results[query]} == pytest.approx(
            {h.id: h.logit for h in results}, abs=1e-5
        )
    log = (tmp_path / "out.trec.scores").read_bytes().splitlines(keepends=True)
    assert log.count(END_OF_GROUP) == 24


# --- going on -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def watched(monkeypatch):
    """How many prompts were scored, and after how many calls to be interrupted."""
    seen = {"prompts": 0, "calls": 0, "last": None}
    score = many.score_prompts

    def watch(host, encodings, *more, **options):
        seen["calls"] += 1
        if seen["calls"] == seen["last"]:
            raise KeyboardInterrupt
        seen["prompts"] += len(encodings)
        return score(host, encodings, *more, **options)

    monkeypatch.setattr(many, "score_prompts", watch)
    return seen


def test_an_interrupted_ranking_goes_on_to_the_same_bit(tiny, tmp_path, watched):
    whole = rank_many(tiny, QUERIES, TEXTS, out=tmp_path / "whole.trec", batch_tokens=64)
    watched.update(prompts=0, calls=0, last=4)
    with pytest.raises(KeyboardInterrupt):
        rank_many(tiny, QUERIES, TEXTS, out=tmp_path / "out.trec", batch_tokens=64)
    assert not (tmp_path / "out.trec").exists()
    log = tmp_path / "out.trec.scores"
    with log.open("ab") as file:
        file.write(b'["d20", "00", null, [1.0, 2.0, 3.0]]\n["d21", "0')  # what a killed process may leave
    rest = rank_many(tiny, QUERIES, TEXTS, out=tmp_path / "out.trec", batch_tokens=64)
    assert 0 < rest.reused < 72
    assert rest.scored + rest.reused == watched["prompts"] == 72
    assert rest.results == whole.results
    assert (tmp_path / "out.trec").read_bytes() == (tmp_path / "whole.trec").read_bytes()
    assert log.read_bytes() == (tmp_path / "whole.trec.scores").read_bytes()


def test_only_what_has_changed_is_scored_again(tiny, tmp_path, watched):
    noise(56, 56, 1).save(tmp_path / "a.png")
    documents = {"a": {"image": str(tmp_path / "a.png")}, "b": "words", "c": tmp_path / "c.txt"}
    (tmp_path / "c.txt").write_text("one text")
    out = tmp_path / "out.trec"
    rank_many(tiny, QUERIES, documents, out=out)

    def scored_again(documents, **options):
        before, watched["prompts"] = read_run(out), 0
        rankings = rank_many(tiny, QUERIES, documents, out=out, **options)
        assert rankings.scored == watched["prompts"]
        changed = {result.id for result in rankings.results["q1"] if before["q1"].get(result.id) != result.logit}
        as_rank_says(tiny, rankings, QUERIES, documents)
        return watched["prompts"], changed

    assert scored_again(documents) == (0, set())
    noise(84, 56, 2).save(tmp_path / "a.png")
    assert scored_again(documents) == (3, {"a"})
    (tmp_path / "c.txt").write_text("another text")
    assert scored_again(documents) == (3, {"c"})
    assert scored_again({**documents, "d": "a new one"}) == (3, {"d"})
    assert scored_again({"b": "now other words", "a": documents["a"]}) == (3, {"b"})
    assert scored_again(documents) == (3, {"b", "c"})  # c is new to the run, and its score was kept


def test_another_ranking_in_its_place_is_refused(tiny, tmp_path):
    out = tmp_path / "out.trec"
    rank_many(tiny, QUERIES, TEXTS, out=out)
    kept = out.read_bytes()
    other = Reranker.from_pretrained(tiny.name, dtype="float32")
    fill_randomly(other.model, seed=9)
    for options, words in (
        ({"reranker": other}, "another model"),
        ({"queries": {**QUERIES, "q1": "number 4"}}, "other queries"),
        ({"queries": {"q1": "number 3"}}, "other queries"),
        ({"max_length": 200}, "other lengths"),
        ({"passages": Passages(tokens=64, overlap=0)}, "other passages"),
        ({"reranker": other, "max_query_length": 5}, "another model and other lengths"),
    ):
        with pytest.raises(InputError, match=f"holds scores of {words}; remove it to begin anew"):
            rank_with(**{"reranker": tiny, "out": out, **options})
    assert out.read_bytes() == kept
    fewer = rank_many(tiny, QUERIES, TEXTS, top_n=2, out=out)
    assert (fewer.scored, [len(results) for results in fewer.results.values()]) == (0, [2, 2, 2])


def test_a_damaged_log(tiny, tmp_path):
    out, log = tmp_path / "out.trec", tmp_path / "out.trec.scores"
    whole = rank_many(tiny, QUERIES, TEXTS, out=out)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(
        b"".join([lines[0], lines[1].replace(b"[", b"", 1), lines[2].replace(b"null, [", b"null, [true, "), *lines[3:]])
    )
    with pytest.warns(UserWarning, match="2 lines that are damaged; such documents are scored again"):
        again = rank_many(tiny, QUERIES, TEXTS, out=out)
    assert again.scored == 6
    as_rank_says(tiny, again, QUERIES, TEXTS)
    assert [result.id for result in again.results["q1"]] == [result.id for result in whole.results["q1"]]
    log.write_bytes(b'{"other": 1}\n' + b"".join(lines[1:]))
    with pytest.raises(InputError, match="is not a log of scores, or is damaged"):
        rank_many(tiny, QUERIES, TEXTS, out=out)
    log.write_bytes(lines[0][:40])  # killed while it was written
    assert rank_many(tiny, QUERIES, TEXTS, out=out).scored == 72


def test_what_a_digest_sees(tmp_path):
    noise(56, 56, 1).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "a.txt").write_text("words")
    digest = Digester().digest
    image = {"image": str(tmp_path / "a.png")}
    assert digest(image) == digest({"image": str(tmp_path / "b.png")}) == digest(Document(image, "d", {"x": 1}))
    contents = [
        "words", "word", ["words"], ["wor", "ds"], {"text": "words"}, image, [image, "words"], ["words", image],
        tmp_path / "a.txt", {"image": "http://localhost/a.png"}, {"pdf": str(tmp_path / "a.png")},
        {"pdf": str(tmp_path / "a.png"), "pages": "1"}, noise(56, 56, 1), noise(56, 56, 2), b"words",
    ]  # fmt: skip
    found = [digest(content) for content in contents]
    assert None not in found
    assert len(set(found)) == len(found)
    assert found == [Digester().digest(content) for content in contents]
    with (tmp_path / "a.txt").open() as file:
        assert [digest(x) for x in (file, {"image": "absent.png"}, tmp_path / "absent.png", tmp_path, object())] == [None] * 5


# --- candidates ---------------------------------------------------------------------------------------------------------


def test_candidates(tiny, tmp_path, watched):
    candidates = {"q1": ["d1", "d3"], "q2": {"d1": 5.0, "gone": 3.0, "d2": 1.0}, "other": ["d9"]}
    rankings = rank_many(tiny, QUERIES, TEXTS, candidates, out=tmp_path / "out.trec")
    assert {q: {h.id for h in results} for q, results in rankings.results.items()} == {
        "q1": {"d1", "d3"}, "q2": {"d1", "d2"}, "q3": set(),
    }  # fmt: skip
    assert watched["prompts"] == 4
    assert rankings.remarks == (
        "the candidates hold 1 document that is not there, not ranked: gone.",
        "the candidates are of 1 query that is not asked, too: other.",
        "1 query without candidates, for which nothing is ranked: q3.",
    )
    more = {"q1": ["d1", "d3"], "q3": ["d3"]}
    again = rank_many(tiny, QUERIES, TEXTS, more, out=tmp_path / "out.trec")
    assert (again.scored, again.reused) == (1, 2)
    assert again.results["q1"] == rankings.results["q1"]
    everything = rank_many(tiny, QUERIES, TEXTS, out=tmp_path / "out.trec")
    assert (everything.scored, everything.reused) == (67, 5)
    as_rank_says(tiny, everything, QUERIES, TEXTS)


def test_candidates_that_fit_nothing(tiny):
    with pytest.raises(InputError, match="name no document for any of the queries, but such as 'x'"):
        rank_many(tiny, QUERIES, TEXTS, {"x": ["d1"]})
    for documents in (TEXTS, iter(["a", "b"])):
        with pytest.raises(InputError, match="hold none of the documents, but such as 'gone'"):
            rank_many(tiny, QUERIES, documents, {"q1": ["gone"]})
    with pytest.raises(InputError, match="the candidates of q1 are str"):
        rank_many(tiny, QUERIES, TEXTS, {"q1": "d1"})


# --- what cannot be used ------------------------------------------------------------------------------------------------


def test_what_fails_is_listed_and_tried_again(tiny, tmp_path):
    documents = {"bad": {"image": str(tmp_path / "bad.png")}, "large": noise(252, 252), "d": "words"}
    queries = {**QUERIES, "none": {"image": "no-such.png"}}
    (tmp_path / "bad.png").write_bytes(b"no picture")
    options = {"out": tmp_path / "out.trec", "max_length": 80, "max_query_length": 20}
    rankings = rank_many(tiny, queries, documents, **options)
    assert set(rankings.failed) == {"query none", "bad", "q1 large", "q2 large", "q3 large"}
    assert "not a picture" in rankings.failed["bad"]
    assert "max_length is 80" in rankings.failed["q1 large"]
    assert {query: [result.id for result in results] for query, results in rankings.results.items()} == {
        "q1": ["d"], "q2": ["d"], "q3": ["d"], "none": [],
    }  # fmt: skip
    noise(56, 56).save(tmp_path / "bad.png")
    again = rank_many(tiny, queries, documents, **options)
    assert (again.scored, again.reused) == (3, 3)
    assert "bad" not in again.failed


def test_nothing_can_be_scored(tiny):
    with pytest.raises(InputError, match="nothing could be scored, beginning with 0: "):
        rank_many(tiny, QUERIES, [None])
    with pytest.raises(InputError, match="none of the queries can be asked, beginning with query 0: "):
        rank_many(tiny, [None], TEXTS)
    for documents in ([], {}, iter([])):
        with pytest.raises(InputError, match="there are no documents"):
            rank_many(tiny, QUERIES, documents)
    with pytest.raises(InputError, match="there are no queries"):
        rank_many(tiny, [], TEXTS)


@pytest.mark.parametrize("kind", [list, iter])
def test_an_id_that_occurs_twice(tiny, kind, watched):
    documents = [Document("a", "x"), Document("b", "y"), Document("c", "x")]
    with pytest.raises(InputError, match="the document id 'x' occurs twice"):
        rank_many(tiny, QUERIES, kind(documents))
    assert watched["calls"] == 0
    with pytest.raises(InputError, match="the query id 'x' occurs twice"):
        rank_many(tiny, kind(documents), TEXTS)


def test_ids_that_a_trec_run_cannot_keep(tiny, tmp_path, watched):
    documents = {"with blanks": "words"}
    with pytest.raises(InputError, match=r"document 'with blanks': a TREC run cannot keep the id .*; JSON lines can"):
        rank_many(tiny, QUERIES, documents, out=tmp_path / "out.trec")
    with pytest.raises(InputError, match="query 'a b': "):
        rank_many(tiny, {"a b": "x"}, TEXTS, out=tmp_path / "out.trec")
    assert watched["calls"] == 0
    rank_many(tiny, QUERIES, documents, out=tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["results"][0]["id"] == "with blanks"


def test_arguments_that_cannot_be(tiny, tmp_path):
    for options, words in (
        ({"top_n": 0}, "top_n is 0"),
        ({"form": "xml"}, "form is 'xml'"),
        ({"out": tmp_path}, "is a folder"),
        ({"out": tmp_path / "no" / "out.trec"}, "cannot be written: No such file"),
        ({"documents": "one text"}, "documents is str"),
        ({"candidates": ["d1"]}, "candidates is list"),
        ({"max_length": 10**9}, "positions"),
    ):
        with pytest.raises(InputError, match=words):
            rank_with(tiny, **options)
    with tiny.record("decoder.layers.*.attention.pattern"), pytest.raises(InputError, match="inside record"):
        rank_many(tiny, QUERIES, TEXTS)
    with (tmp_path / "q.txt").open("w+") as file:
        file.write("words")
        file.seek(0)
        with pytest.raises(InputError, match="the query 0 is an open file"):
            rank_many(tiny, [file], TEXTS, out=tmp_path / "out.trec")


def test_half_precision_comes_back_to_the_bit(tiny_directory, tmp_path):
    reranker = Reranker.from_pretrained(tiny_directory, dtype="bfloat16")
    first = rank_many(reranker, QUERIES, TEXTS, out=tmp_path / "out.trec")
    again = rank_many(reranker, QUERIES, TEXTS, out=tmp_path / "out.trec")
    assert (again.results, again.scored) == (first.results, 0)
    assert all(result.logit == torch.tensor(result.logit).item() for result in first.results["q1"])


# --- files of queries ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "one\n\n two words \r\n", {"1": "one", "3": "two words"}),
        ("a.tsv", '12\twhat is "it"?\n7\ta\tb\n', {"12": 'what is "it"?', "7": "a\tb"}),
        ("a.tsv", "query-id\tquery\n12\twhat\n", {"12": "what"}),
        ("a.jsonl", '{"_id": "a", "text": "x", "metadata": {}}\n{"id": 7, "query": "y"}\n', {"a": "x", "7": "y"}),
        ("a.jsonl", '"just words"\n{"qid": "b", "question": "z", "answer": "n"}\n', {"1": "just words", "b": "z"}),
        ("a.json", '[{"query_id": 1, "query": "x"}, {"text": "y"}]', {"1": "x", "2": "y"}),
        ("a.csv", 'id,text\n1,"x, y"\n', {"1": "x, y"}),
    ],
)
def test_files_of_queries(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = {query.id: query.content for query in read_queries(tmp_path / name)}
    assert {key: content if isinstance(content, str) else content["text"] for key, content in found.items()} == expected


def test_a_picture_among_the_queries(tmp_path):
    noise(56, 56).save(tmp_path / "a.png")
    (tmp_path / "q.jsonl").write_text('{"_id": "p", "image": "a.png"}\n')
    assert read_queries(tmp_path / "q.jsonl")[0].content == {"image": str(tmp_path / "a.png")}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.tsv", "1\tx\nno tab\n2\t\n", r"line 2: the line is not an id, a tab and a query; 2 of its 3 records"),
        ("a.tsv", "1\tx\n1\ty\n", r"line 2: the query id '1' stands here a second time"),
        ("a.jsonl", '{"_id": 2, "text": "x"}\n{"text": "y"}\n', "line 2: the query id '2' stands here a second time"),
        ("a.jsonl", '{"_id": "a"}\n', "neither text nor a picture; it is the only record"),
        ("a.txt", "\n\n", "a.txt holds no queries"),
        ("a.txt", "x\0y\n", "holds a NUL"),
        ("a.pdf", "x", "is no file of queries, whose names end in .jsonl"),
    ],
)
def test_files_that_hold_no_queries(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        read_queries(tmp_path / name)
    with pytest.raises(InputError, match="does not exist"):
        read_queries(tmp_path / "absent.txt")
