"""Evaluating a dataset: scores as `score` gives them, kept on disk, shared over processes, measured and compared."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from m0.cli.main import main
from m0.errors import InputError
from m0.evaluate import (
    Dataset,
    Evaluation,
    bm25_run,
    chunks,
    evaluate,
    evaluate_contrasts,
    evaluation,
    load_contrasts,
    read_run,
    winoground,
    write_run,
)
from m0.evaluate.bm25 import terms
from m0.evaluate.metrics import per_query
from tests.conftest import noise

pytest.importorskip("ir_measures")
pytest.importorskip("bm25s")
ROOT = Path(__file__).parent.parent.parent


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    """12 documents (texts, a picture, both), 4 queries in 2 languages, one of them a picture."""
    folder = tmp_path / "data"
    (folder / "qrels").mkdir(parents=True)
    noise(70, 60, seed=1).save(folder / "one.png")
    noise(60, 80, seed=2).save(folder / "two.png")
    corpus = [{"_id": f"d{i}", "title": f"title {i}", "text": f"some words about the number {i}"} for i in range(9)]
    corpus += [{"_id": "p1", "image": "one.png"}, {"_id": "m1", "text": "with a picture", "image": "two.png"}]
    corpus += [{"_id": "zh", "text": "这是关于打印机的文章"}]
    write_lines(folder / "corpus.jsonl", corpus)
    queries = [
        {"_id": "q1", "text": "number 3", "language": "en"},
        {"_id": "q2", "text": "打印机", "metadata": {"language": "zh"}},
        {"_id": "q3", "image": "one.png", "language": "en"},
        {"_id": "q4", "text": "title words", "language": "en"},
        {"_id": "unjudged", "text": "nothing"},
    ]
    write_lines(folder / "queries.jsonl", queries)
    judged = ["query-id\tcorpus-id\tscore", "q1\td3\t2", "q1\td4\t1", "q2\tzh\t1", "q3\tp1\t1", "q4\td0\t1", "q4\tm1\t0"]
    (folder / "qrels" / "test.tsv").write_text("\n".join(judged) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def dataset(folder):
    return Dataset.load(folder)


def test_loading(dataset, folder):
    assert len(dataset.corpus) == 12
    assert set(dataset.queries) == {"q1", "q2", "q3", "q4"}
    assert dataset.languages == {"q1": "en", "q2": "zh", "q3": "en", "q4": "en"}
    assert dataset.corpus["d1"] == "title 1\nsome words about the number 1"
    assert dataset.corpus["m1"] == ["with a picture", {"image": str(folder / "two.png")}]
    assert dataset.corpus["p1"] == [{"image": str(folder / "one.png")}]
    assert dataset.qrels["q1"] == {"d3": 2, "d4": 1}


def test_scores_are_those_of_score(tiny, dataset):
    done = evaluate(tiny, dataset)
    assert not done.failed
    for query, scores in done.run.items():
        alone = tiny.logits([(dataset.queries[query], dataset.corpus[document]) for document in scores])
        assert list(scores.values()) == pytest.approx(alone, abs=1e-5)
        assert len(scores) == 12


def test_only_the_candidates_are_scored(tiny, dataset):
    candidates = {"q1": ["d1", "d3"], "q4": ["d0"]}
    done = evaluate(tiny, dataset, candidates)
    assert {query: set(scores) for query, scores in done.run.items()} == {
        "q1": {"d1", "d3"}, "q2": set(), "q3": set(), "q4": {"d0"},
    }  # fmt: skip
    assert done.values["R@10"] == {"q1": 0.5, "q2": 0.0, "q3": 0.0, "q4": 1.0}


def test_a_killed_evaluation_goes_on_where_it_stopped(tiny, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "MIN_CHUNK_PAIRS", 8)
    whole = evaluate(tiny, dataset, out=tmp_path / "whole")
    scored = []
    original = evaluation.score_chunk

    def watched(reranker, dataset, chunk, options, pictures):
        scored.extend(chunk)
        if len(scored) > 6:
            raise KeyboardInterrupt
        return original(reranker, dataset, chunk, options, pictures)

    monkeypatch.setattr(evaluation, "score_chunk", watched)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny, dataset, out=tmp_path / "broken")
    with (tmp_path / "broken" / "scores-0.jsonl").open("a", encoding="utf-8") as file:
        file.write('["q1", "d')  # what a killed process may leave
    again = []
    monkeypatch.setattr(evaluation, "score_chunk", lambda *a: again.extend(a[2]) or original(*a))
    rest = evaluate(tiny, dataset, out=tmp_path / "broken")
    assert 0 < len(again) < 12
    assert rest.run == whole.run
    assert (tmp_path / "broken" / "run.trec").read_text() == (tmp_path / "whole" / "run.trec").read_text()


def test_a_directory_of_another_evaluation_is_refused(tiny, nano, dataset, tmp_path):
    evaluate(tiny, dataset, {"q1": ["d1"]}, out=tmp_path / "out")
    with pytest.raises(InputError, match="an evaluation of other candidates"):
        evaluate(tiny, dataset, {"q1": ["d2"]}, out=tmp_path / "out")
    with pytest.raises(InputError, match="an evaluation of another model"):
        evaluate(nano, dataset, {"q1": ["d1"]}, out=tmp_path / "out")


def test_a_document_that_cannot_be_used_ranks_last(tiny, folder):
    (folder / "one.png").write_bytes(b"no picture")
    dataset = Dataset.load(folder)
    candidates = {query: list(dataset.corpus) for query in ("q1", "q2", "q4")}
    done = evaluate(tiny, dataset, candidates)
    assert list(done.failed) == ["p1"]
    assert "is not a picture" in done.failed["p1"]
    assert len(done.run["q1"]) == 11


def test_two_processes_do_as_one(tiny, tiny_directory, dataset, folder, tmp_path):
    alone = evaluate(tiny, dataset)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", "-m", "m0.cli.main", "evaluate", str(folder), "--model", str(tiny_directory)]
    command += ["--dtype", "float32", "--out", str(tmp_path / "out"), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((tmp_path / "out").glob("scores-*.jsonl"))) == 2
    report = json.loads(done.stdout)
    assert report["measures"]["nDCG@10"]["mean"] == pytest.approx(alone.means()["nDCG@10"].mean, abs=1e-9)
    shared = read_run(tmp_path / "out" / "run.trec")
    for query, scores in alone.run.items():
        assert shared[query] == pytest.approx(scores, abs=1e-5)


def test_kill_nine(tiny, tiny_directory, folder, dataset, tmp_path):
    """A real process, really killed."""
    code = (
        "import sys, m0.evaluate.chunks as e; e.MIN_CHUNK_PAIRS = 1; from m0.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "evaluate", str(folder), "--model", str(tiny_directory), "--dtype", "float32"]
    command += ["--out", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    scores, deadline = tmp_path / "out" / "scores-0.jsonl", time.monotonic() + 100
    while not (scores.exists() and scores.stat().st_size):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert read_run(tmp_path / "out" / "run.trec").keys() == dataset.queries.keys()
    pairs = [line for line in scores.read_text().splitlines() if not line.startswith("[true")]
    assert len(pairs) == len(set(pairs)) == 48


def test_trec_runs_come_back(tmp_path):
    run = {"q1": {"d1": 0.1, "d2": 1 / 3, "d3": -2e-7}, "q2": {"d1": 5.0}}
    write_run(tmp_path / "run.trec", run)
    assert read_run(tmp_path / "run.trec") == run
    assert (tmp_path / "run.trec").read_text().splitlines()[0] == "q1 Q0 d2 1 0.3333333333333333 m0"


def test_bm25(dataset):
    run = bm25_run(dataset, 5)
    assert next(iter(run["q1"])) == "d3"
    assert next(iter(run["q2"])) == "zh", "Chinese is cut into pairs of characters"
    assert all(score > 0 for scores in run.values() for score in scores.values()), "what shares no word is not found"
    assert len(run["q4"]) == 5
    assert run["q3"] == {}, "a picture has no words"
    with pytest.raises(InputError, match="at least 1"):
        bm25_run(dataset, 0)


def test_words_of_many_scripts():
    assert terms("हिन्दी किताब") == ["हिन्दी", "किताब"]
    assert terms("தமிழ் நாடு") == ["தமிழ்", "நாடு"]
    assert terms("Ein schönes Haus, 12!") == ["ein", "schönes", "haus", "12"]
    assert terms("打印机 ok") == ["打印", "印机", "ok"]


def test_line_separators_inside_text_are_text(folder):
    """U+2028 and its like may stand in JSON as they are."""
    with (folder / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"_id": "u", "text": "one\u2028two\x85three"}\n')
    assert Dataset.load(folder).corpus["u"] == "one\u2028two\x85three"


def test_a_query_or_pair_that_cannot_be_used_is_named_and_the_rest_goes_on(tiny, folder):
    (folder / "one.png").unlink()
    with (folder / "queries.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"_id": "q9", "image": "absent.png"}\n')
    with (folder / "qrels" / "test.tsv").open("a", encoding="utf-8") as file:
        file.write("q9\td1\t1\n")
    done = evaluate(tiny, Dataset.load(folder), max_length=24)
    assert {"query q9", "query q3", "p1"} <= set(done.failed)
    assert "absent.png does not exist" in done.failed["query q9"]
    assert done.run["q1"] or any(key.startswith(("q1 ", "q4 ")) for key in done.failed)
    assert done.run["q9"] == {}


def test_what_failed_is_tried_again_and_a_changed_picture_scored_anew(tiny, folder, tmp_path):
    picture = (folder / "one.png").read_bytes()
    (folder / "one.png").unlink()
    first = evaluate(tiny, Dataset.load(folder), out=tmp_path / "out")
    assert "p1" in first.failed
    (folder / "one.png").write_bytes(picture)
    second = evaluate(tiny, Dataset.load(folder), out=tmp_path / "out")
    assert not second.failed
    noise(70, 60, seed=9).save(folder / "one.png")
    third = evaluate(tiny, Dataset.load(folder), out=tmp_path / "out")
    assert third.run["q1"]["p1"] != second.run["q1"]["p1"]
    assert third.run["q1"]["d1"] == second.run["q1"]["d1"]


def test_equal_scores_are_ordered_in_the_file_as_in_the_measures(tmp_path):
    run = {"q": {"a": 1.0, "b": 1.0, "c": 2.0}}
    write_run(tmp_path / "run.trec", run)
    order = [line.split()[2] for line in (tmp_path / "run.trec").read_text().splitlines()]
    assert order == ["c", "b", "a"]
    assert per_query({"q": {"b": 1}}, run, ["RR"])["RR"]["q"] == 0.5


def test_bm25_against_the_formula(dataset):
    """Lucene's BM25 with k1 = 1.5 and b = 0.75, computed term by term."""
    import math

    from m0.evaluate.bm25 import BM25, terms

    texts = {key: dataset.text(document) for key, document in dataset.corpus.items()}
    words = {key: terms(text) for key, text in texts.items()}
    mean_length = sum(map(len, words.values())) / len(words)
    for key, score in zip(texts, BM25(texts).scores("number 3 words"), strict=True):
        expected = 0.0
        for term in ("number", "3", "words"):
            holding = sum(term in other for other in words.values())
            idf = math.log(1 + (len(words) - holding + 0.5) / (holding + 0.5))
            count = words[key].count(term)
            expected += idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(words[key]) / mean_length))
        assert score == pytest.approx(expected, rel=1e-4)


def test_the_command_line(capsys, tiny_directory, folder, tmp_path):
    arguments = ["evaluate", str(folder), "--model", str(tiny_directory), "--measures", "nDCG@5", "R@5"]
    assert main([*arguments, "--bm25", "5"]) == 0
    out = capsys.readouterr().out
    assert "| measure | mean [95 % interval] | BM25 | difference | p |" in out
    assert "| zh | 1 |" in out
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert main([*arguments, "--compare", str(tmp_path / "out" / "run.trec")]) == 0
    assert "0.000 [0.000, 0.000] | 1.0000 |" in capsys.readouterr().out
    for name in ("accuracy", "R", "P", "Success"):
        assert main(["evaluate", str(folder), "--measures", name]) == 2
        assert capsys.readouterr().err.startswith(f"m0: there is no measure '{name}'")
    first, *others = (tmp_path / "out" / "run.trec").read_text(encoding="utf-8").splitlines()
    one = "\n".join(line for line in (first, *others) if line.split()[0] == first.split()[0])
    (tmp_path / "part.trec").write_text(one + "\n", encoding="utf-8")
    assert main([*arguments, "--compare", str(tmp_path / "part.trec")]) == 0
    assert "part.trec does not rank" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("corpus.jsonl", "{", "corpus.jsonl, line 1: not a line of JSON"),
        ("corpus.jsonl", '{"text": "a"}', 'line 1: lacks "_id"'),
        (
            "corpus.jsonl",
            '{"_id": "a", "text": "a"}\n{"_id": "a", "text": "b"}',
            "line 2: the id 'a' stands here a second time",
        ),
        ("corpus.jsonl", '{"_id": "a b", "text": "a"}', "holds blanks"),
        ("corpus.jsonl", '{"_id": "a", "text": ""}', "has only documents with neither title, text nor image"),
        ("corpus.jsonl", '{"_id": "a", "text": 3}', "must be text"),
        ("corpus.jsonl", '{"_id": "a", "text": "a"}', "judges none of the documents of corpus.jsonl as relevant"),
        ("queries.jsonl", '{"_id": "q0", "text": "a"}', "has nothing to ask for any of the 4 queries"),
        ("queries.jsonl", "", "queries.jsonl is empty"),
        ("qrels/test.tsv", "q1\td3\thigh", "line 1: must be query-id, corpus-id and a whole number"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "has no judgements"),
        ("qrels/test.tsv", "q1\td3\t2\nq1\td3\t0", "line 2: judges d3 for q1 as 0, but an earlier line as 2"),
        ("qrels/test.tsv", "q1\td3\t99999999999", "must lie between -1000 and 1000"),
    ],
)
def test_bad_datasets(folder, file, text, reason):
    (folder / file).write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        Dataset.load(folder)
    assert reason in str(caught.value)


def test_missing_datasets(folder, tmp_path):
    with pytest.raises(InputError, match="is not a directory"):
        Dataset.load(tmp_path / "absent")
    with pytest.raises(InputError, match=r"dev.tsv does not exist"):
        Dataset.load(folder, split="dev")


@pytest.mark.parametrize("line", ["q1 d1 1", "q1 Q0 d1 1 high m0", "q1 Q0 d1 1 nan m0", "q1 Q0 d1 1 2 m0\nq1 Q0 d1 2 1 m0"])
def test_bad_runs(tmp_path, line):
    (tmp_path / "run.trec").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="line"):
        read_run(tmp_path / "run.trec")


def test_where_nothing_can_be_scored_there_are_no_figures(tiny, folder):
    for picture in ("one.png", "two.png"):
        (folder / picture).write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"nothing could be scored, beginning with p1: .*one.png"):
        evaluate(tiny, Dataset.load(folder), {"q1": ["p1", "m1"]})


def test_by_language(dataset):
    done = Evaluation.of(dataset, {"q1": {"d3": 1.0}, "q2": {"zh": 1.0}}, ["Success@1"])
    languages = done.by_language()
    assert languages["zh"]["Success@1"].mean == 1.0
    assert languages["en"]["Success@1"].mean == pytest.approx(1 / 3)
    assert languages["en"]["Success@1"].queries == 3


def test_winoground_from_files(tiny, tiny_directory, tmp_path, capsys):
    for number in range(4):
        noise(60, 60, seed=number).save(tmp_path / f"{number}.png")
    rows = [
        {"id": i, "caption_0": f"one {i}", "caption_1": f"two {i}", "image_0": f"{2 * i}", "image_1": f"{2 * i + 1}.png"}
        for i in range(2)
    ]
    write_lines(tmp_path / "examples.jsonl", rows)
    scores = evaluate_contrasts(tiny, load_contrasts(tmp_path))
    tables = [
        [
            tiny.logits([(f"{word} {i}", {"image": str(tmp_path / f"{2 * i + j}.png")}) for j in (0, 1)])
            for word in ("one", "two")
        ]
        for i in range(2)
    ]
    assert {name: value.mean for name, value in scores.items()} == winoground(tables)
    assert main(["evaluate", str(tmp_path), "--winoground", "--json", "--model", str(tiny_directory)]) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["group"]["mean"] == scores["group"].mean
    assert main(["evaluate", str(tmp_path), "--winoground", "--out", str(tmp_path / "out")]) == 2
    assert "leave out --out" in capsys.readouterr().err
    write_lines(tmp_path / "examples.jsonl", [rows[0], {"caption_0": "a"}])
    with pytest.raises(InputError, match="line 2: must hold caption_0"):
        load_contrasts(tmp_path)
