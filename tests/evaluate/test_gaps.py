"""Datasets as they are published: gaps are listed and counted, files are read as tools write them, damage is refused."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from m0.cli.main import main
from m0.errors import InputError
from m0.evaluate import Dataset, Evaluation, bm25_run, evaluate, read_run, write_run
from m0.evaluate.files import format_ids
from m0.evaluate.metrics import per_query
from tests.evaluate.conftest import CORPUS, HEADER

pytest.importorskip("ir_measures")
pytest.importorskip("bm25s")
ROOT = Path(__file__).parent.parent.parent


# --- gaps -------------------------------------------------------------------------------------------------------------


def test_a_judged_document_that_is_not_there_counts_as_not_found(tiny, write):
    """By hand: of two relevant documents one is there, in first or second place."""
    dataset = Dataset.load(write(qrels=HEADER + "q1\td1\t1\nq1\tgone\t1\n"))
    assert list(dataset.unusable) == ["gone"]
    assert dataset.notes == ("corpus.jsonl lacks 1 judged document, counted as not found: gone.",)
    ideal = 1 + 1 / math.log2(3)
    for other, place in ((1.0, 1), (3.0, 2)):
        values = Evaluation.of(dataset, {"q1": {"d1": 2.0, "d2": other}}).values
        assert values["nDCG@10"]["q1"] == pytest.approx(1 / math.log2(place + 1) / ideal)
        assert values["R@10"]["q1"] == 0.5
        assert values["AP"]["q1"] == pytest.approx(0.5 / place)
        assert values["RR"]["q1"] == pytest.approx(1 / place)
        assert values["Success@1"]["q1"] == (place == 1)
    done = evaluate(tiny, dataset)
    assert done.run["q1"].keys() == {"d1", "d2"}
    assert done.values["R@10"]["q1"] == 0.5
    assert "does not have it" in done.failed["gone"]
    assert done.report()["failed"] == done.failed
    assert done.report()["notes"] == list(dataset.notes)


@pytest.mark.parametrize(
    "document",
    [
        {"_id": "d3", "title": "", "text": "", "metadata": {}},
        {"_id": "d3", "title": None, "text": None},
        {"_id": "d3", "text": " \n\t"},
        {"_id": "d3"},
        {"_id": "d3", "title": float("nan"), "text": float("nan")},
        {"_id": "d3", "text": "", "image": ""},
    ],
    ids=str,
)
def test_an_empty_document_is_listed(tiny, write, document):
    dataset = Dataset.load(write([*CORPUS, document], qrels=HEADER + "q1\td1\t1\nq1\td3\t1\n"))
    assert dataset.corpus.keys() == {"d1", "d2"}
    assert dataset.notes == ("corpus.jsonl has 1 empty document, not ranked: d3.",)
    done = evaluate(tiny, dataset, {"q1": ["d1", "d3"]})
    assert done.run["q1"].keys() == {"d1"}
    assert done.values["R@10"]["q1"] == 0.5
    assert done.failed["d3"].endswith("corpus.jsonl, line 3: has neither title, text nor image.")


def test_queries_with_gaps(tiny, write):
    """One is empty, one judged and not there, one has no relevant document, one has no judgement."""
    texts = {"q1": "compass", "q2": "", "q4": "mammal", "q5": "unjudged"}
    qrels = HEADER + "q1\td1\t1\nq2\td1\t1\nq3\td1\t1\nq4\td1\t0\n"
    queries = [{"_id": key, "text": text, "language": "en"} for key, text in texts.items()]
    dataset = Dataset.load(write(queries=queries, qrels=qrels))
    assert dataset.queries.keys() == {"q1", "q4"}
    assert dataset.qrels.keys() == {"q1", "q2", "q4"}
    assert dataset.notes == (
        "queries.jsonl lacks 1 judged query, left out of the figures: q3.",
        "queries.jsonl has 1 empty query, counted as 0: q2.",
        "queries.jsonl has 1 query without any relevant document, counted as 0: q4.",
    )
    done = evaluate(tiny, dataset)
    assert done.values["R@10"] == {"q1": 1.0, "q2": 0.0, "q4": 0.0}
    assert done.report()["queries"] == done.means()["RR"].queries == done.by_language()["en"]["RR"].queries == 3
    assert set(done.failed) == {"query q2"}


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"corpus": [{"_id": "d1", "text": ""}]}, "has only documents with neither title, text nor image"),
        ({"corpus": [{"_id": "d9", "text": "a"}]}, "judges none of the documents of corpus.jsonl as relevant"),
        ({"queries": [{"_id": "q9", "text": "a"}]}, "has nothing to ask for any of the 1 queries"),
        ({"queries": [{"_id": "q1", "text": None}]}, "has nothing to ask for any of the 1 queries"),
        ({"qrels": HEADER + "q1\td1\t0\n"}, "judges no document as relevant"),
        ({"qrels": HEADER + "q1\td1\t0.5\n"}, "line 2: the score is 0.5, but must be a whole number"),
        ({"qrels": HEADER + "q1\td1\tnan\n"}, "line 2: the score is nan, but must lie between"),
        ({"qrels": HEADER + "q1\t\t1\n"}, "line 2: must be query-id, corpus-id"),
        ({"qrels": "q1 Q0 d1 1 0.5 tag\n"}, "line 1: must be query-id, corpus-id"),
        ({"corpus": [{"_id": True, "text": "a"}]}, 'line 1: "_id" is True, but must be text or a whole number'),
        ({"corpus": [{"_id": 1.0, "text": "a"}]}, 'line 1: "_id" is 1.0'),
        ({"corpus": [{"_id": "d1", "text": 0}]}, 'line 1: "text" is 0, but must be text'),
        ({"corpus": [{"_id": "d1", "title": ["a"]}]}, "line 1: \"title\" is ['a'], but must be text"),
        ({"corpus": "[1]\n"}, "line 1: must be a JSON object"),
        ({"corpus": [*CORPUS, {"_id": "d1", "text": "another"}]}, "line 3: the id 'd1' stands here a second time, with other"),
        ({"corpus": [{"_id": "d1", "text": ""}, *CORPUS]}, "line 2: the id 'd1' stands here a second time, with other"),
    ],
    ids=str,
)
def test_damage_is_refused(write, files, reason):
    with pytest.raises(InputError) as caught:
        Dataset.load(write(**files))
    assert reason in str(caught.value)


def test_ids_that_stand_there_twice_alike(write):
    dataset = Dataset.load(write([*CORPUS, {**CORPUS[0], "metadata": {"url": "x"}}]))
    assert len(dataset.corpus) == 2
    assert dataset.notes == ("corpus.jsonl repeats 1 document, counted once: d1.",)


def test_many_gaps_make_one_short_sentence(write):
    lost = [f"gone{i}" for i in range(40)]
    dataset = Dataset.load(write(qrels=HEADER + "q1\td1\t1\n" + "".join(f"q1\t{key}\t1\n" for key in lost)))
    assert dataset.notes[0].endswith(
        "40 judged documents, counted as not found: gone0, gone1, gone2, gone3, gone4 and 35 more."
    )
    assert list(dataset.unusable) == lost
    assert format_ids("abcdef") == "a, b, c, d, e, f"


# --- files as they come -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "qrels",
    [
        "q1\td1\t1\n",
        "q1\td1\t1.0\n",
        "query_id\tdoc_id\trelevance\nq1\td1\t1\n",
        "\n\nquery-id\tcorpus-id\tscore\r\nq1\td1\t1\r\n\r\n\n",
        "\ufeffquery-id\tcorpus-id\tscore\nq1\td1\t1",
        "q1 0 d1 1\n",
        "q1\t0\td1\t1\n",
        "q1 Q0 d1 1\n",
        "q1 d1 1\n",
        "q1\td1\t1\nq1\td1\t1\n",
        "q1\td1\t1\nq1\td2\t-1\n",
    ],
    ids=ascii,
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_judgements_as_tools_write_them(write, qrels, encoding):
    qrels = qrels.lstrip("\ufeff") if encoding == "utf-16" else qrels  # which has a mark of its own
    dataset = Dataset.load(write(qrels=qrels, encoding=encoding))
    assert dataset.qrels["q1"]["d1"] == 1
    assert dataset.qrels.keys() == {"q1"}
    assert not dataset.notes


def test_rows_as_tools_write_them(write):
    corpus = "\ufeff" + "\r\n".join(
        [
            '{"_id": 7, "title": "only a title"}',
            '{"_id": "d1", "title": null, "text": "only text", "metadata": null}',
            '{"id": "d2", "title": NaN, "text": "no _id", "language": NaN}',
            "",
            " ",
        ]
    )
    queries = [{"_id": "q1", "text": "a", "metadata": {"language": "de"}}]
    dataset = Dataset.load(write(corpus, queries, "q1\t7\t1\n"))
    assert dataset.corpus == {"7": "only a title", "d1": "only text", "d2": "no _id"}
    assert dataset.languages == {"q1": "de"}
    assert not dataset.notes


def test_runs_as_tools_write_them(tmp_path):
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "run.trec").write_text("q1\tQ0\td1\t1\t2.5\ttag\r\n\r\n", encoding=encoding)
        assert read_run(tmp_path / "run.trec") == {"q1": {"d1": 2.5}}


# --- first stages -----------------------------------------------------------------------------------------------------


def test_candidates_that_the_corpus_lacks_are_left_out(tiny, write):
    dataset = Dataset.load(write())
    done = evaluate(tiny, dataset, {"q1": {"d2": 3.0, "x1": 2.0, "d1": 1.0}})
    assert done.run["q1"].keys() == {"d1", "d2"}
    assert done.failed == {"x1": "the candidates of q1 hold it, but the corpus does not have it."}
    assert done.notes == ("the candidates hold 1 document that the corpus lacks, not ranked: x1.",)
    with pytest.raises(InputError, match="none of the dataset's documents, but such as 'x1'"):
        evaluate(tiny, dataset, {"q1": ["x1", "x2"]})
    with pytest.raises(InputError, match="none of the dataset's queries"):
        evaluate(tiny, dataset, {"q7": ["d1"]})


# --- a query that is a document, too ----------------------------------------------------------------------------------


TEXTS = {
    "a": "how do I install the system",
    "b": "installing the system step by step",
    "c": "what is a sea mammal",
    "e": "which animals are sea mammals",
}


@pytest.fixture
def alike(write):
    rows = [{"_id": key, "text": text} for key, text in TEXTS.items()]
    return write(rows, [row for row in rows if row["_id"] in "ac"], "a\tb\t1\nc\te\t1\n")


def test_the_query_itself_is_left_out(nano, alike, tmp_path):
    dataset = Dataset.load(alike)
    done = evaluate(nano, dataset, measures=["RR"], out=tmp_path / "without")
    kept = evaluate(nano, dataset, measures=["RR"], ignore_identical_ids=False, out=tmp_path / "with")
    assert {query: set(scores) for query, scores in done.run.items()} == {"a": set("bce"), "c": set("abe")}
    assert done.values["RR"] == {"a": 1.0, "c": 1.0}
    assert kept.run["a"].keys() == set("abce")
    assert kept.values["RR"] == {"a": 0.5, "c": 0.5}
    assert done.notes == (
        "the document with the query's own id is left out for 2 queries, as BEIR does (ignore_identical_ids).",
    )
    assert not kept.notes
    assert read_run(tmp_path / "without" / "run.trec") == done.run
    for folder, other in (("without", False), ("with", True)):
        with pytest.raises(InputError, match=r"other candidates .* whether identical ids are kept"):
            evaluate(nano, dataset, measures=["RR"], ignore_identical_ids=other, out=tmp_path / folder)
    assert Evaluation.of(dataset, kept.run, ["RR"]).values == done.values
    assert {query: set(scores) for query, scores in Evaluation.of(dataset, kept.run, ["RR"]).run.items()} == {
        query: set(scores) for query, scores in done.run.items()
    }
    assert Evaluation.of(dataset, kept.run, ["RR"], ignore_identical_ids=False).values == kept.values
    given = evaluate(nano, dataset, {"a": ["a", "b"], "c": ["c"]}, measures=["RR"])
    assert {query: set(scores) for query, scores in given.run.items()} == {"a": {"b"}, "c": set()}


def test_the_query_itself_takes_no_place_of_bm25(alike):
    dataset = Dataset.load(alike)
    assert {query: list(found) for query, found in bm25_run(dataset, 1).items()} == {"a": ["b"], "c": ["e"]}
    assert {query: list(found) for query, found in bm25_run(dataset, 1, False).items()} == {"a": ["a"], "c": ["c"]}


def test_a_relevant_document_of_the_querys_own_id_is_said_to_be_lost(write):
    """As where both are numbered from 1."""
    rows = [{"_id": str(i), "text": f"text {i}"} for i in range(3)]
    dataset = Dataset.load(write(rows, rows, "0\t1\t1\n1\t1\t1\n2\t2\t1\n"))
    done = Evaluation.of(dataset, {str(i): {str(j): float(j == i) for j in range(3)} for i in range(3)}, ["R@10"])
    assert done.values["R@10"] == {"0": 1.0, "1": 0.0, "2": 0.0}
    assert "left out for 3 queries, as BEIR does (ignore_identical_ids), though judged relevant" in done.notes[0]
    assert done.notes[0].endswith("counted as not found, for 1, 2.")


def test_flags_of_the_command_line(alike, capsys):
    results = {}
    for flags in ([], ["--keep-identical-ids"], ["--bm25", "1"], ["--bm25", "1", "--keep-identical-ids"]):
        assert main(["evaluate", str(alike), "--json", "--measures", "RR", *flags]) == 0
        out, error = capsys.readouterr()
        results[" ".join(flags)] = json.loads(out)
        assert ("own id is left out" in error) == ("--keep-identical-ids" not in flags)
    means = {flags: report["measures"]["RR"]["mean"] for flags, report in results.items()}
    assert means == {"": 1.0, "--keep-identical-ids": 0.5, "--bm25 1": 1.0, "--bm25 1 --keep-identical-ids": 0.0}
    assert results["--bm25 1"]["other"]["RR"]["mean"] == 1.0
    assert results["--bm25 1 --keep-identical-ids"]["other"]["RR"]["mean"] == 0.0


# --- scores that are nearly or wholly equal ---------------------------------------------------------------------------


def test_logits_closer_than_float32_are_told_apart():
    """trec_eval itself would call them equal and put the later id first."""
    step = 2.0**-40
    for better, worse in ((1 + step, 1.0), (-3.0, -3.0 - step), (1e-60, 0.0), (1e300, 1e200)):
        for run in ({"a": better, "b": worse}, {"b": worse, "a": better}):
            assert per_query({"q": {"a": 1}}, {"q": run}, ["RR"])["RR"]["q"] == 1.0


def test_equal_scores_are_counted(write):
    dataset = Dataset.load(write())
    run = {"q1": {"d1": 0.5, "d2": 0.5}}
    done = Evaluation.of(dataset, run, ["RR"])
    assert done.values["RR"]["q1"] == 0.5
    assert done.remarks == ("in 1 query documents of different relevance have equal scores; the later id goes first: q1.",)
    one_alike = {"q1": {"d1": 0.5, "d2": 0.4, "x": 0.4}}  # of no different relevance
    assert not any("equal scores" in remark for remark in Evaluation.of(dataset, one_alike, ["RR"]).remarks)
    with pytest.raises(InputError, match="the score of d2 for q1 is nan"):
        Evaluation.of(dataset, {"q1": {"d1": 0.5, "d2": math.nan}}, ["RR"])


def test_a_run_that_a_file_cannot_keep_is_refused(tmp_path):
    for run in ({"q": {"a b": 1.0}}, {"q 1": {"a": 1.0}}, {"q": {"": 1.0}}, {"q": {"a": math.inf}}, {"\ud800": {"a": 1.0}}):
        with pytest.raises(InputError):
            write_run(tmp_path / "run.trec", run)
    assert not list(tmp_path.iterdir())


# --- several processes ------------------------------------------------------------------------------------------------


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", "-m", "m0", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)


def test_what_cannot_be_used_ends_no_torchrun(write, tmp_path, capsys):
    folder = write([*CORPUS, {"_id": "p1", "image": "absent.png"}], qrels=HEADER + "q1\td1\t1\nq1\tgone\t1\n")
    done = torchrun("evaluate", folder, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    expected = [
        "m0: corpus.jsonl lacks 1 judged document, counted as not found: gone.",
        f"m0: p1: {folder / 'absent.png'} does not exist.",
    ]
    assert [line for line in done.stderr.splitlines() if line.startswith("m0:")] == expected
    assert "ChildFailedError" not in done.stderr
    assert done.stdout.count("| RR |") == 1
    assert main(["evaluate", str(folder), "--out", str(tmp_path / "out")]) == 1  # alone, the status says so
    out, error = capsys.readouterr()
    assert error.splitlines() == expected
    assert out == done.stdout


def test_gaps_of_the_dataset_alone_are_no_failure(write, capsys):
    assert main(["evaluate", str(write(qrels=HEADER + "q1\td1\t1\nq1\tgone\t1\n"))]) == 0
    assert capsys.readouterr().err == "m0: corpus.jsonl lacks 1 judged document, counted as not found: gone.\n"


def test_many_failures_are_counted(write, capsys):
    folder = write([*CORPUS, *({"_id": f"p{i}", "image": f"{i}.png"} for i in range(9))])
    assert main(["evaluate", str(folder), "--json"]) == 1
    out, error = capsys.readouterr()
    assert len(error.splitlines()) == 6
    assert error.splitlines()[-1] == "m0: 9 could not be used, the others in the report (--json, --out)."
    assert len(json.loads(out)["failed"]) == 9


def test_one_sentence_from_several_processes(tmp_path):
    done = torchrun("evaluate", tmp_path / "absent")
    assert done.returncode == 1
    assert done.stderr.count(f"m0: {tmp_path / 'absent'} is not a directory with a dataset in it.") == 1
