"""`m0 rank --queries`: files in, runs out, killed and gone on with, shared over processes."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from m0.cli.arguments import parser
from m0.cli.main import main
from m0.evaluate import read_run
from m0.evaluate.score_log import END_OF_GROUP
from tests.conftest import noise

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    """A corpus with ids, a folder of files without, and queries with a picture among them."""
    noise(60, 60, 1).save(tmp_path / "one.png")
    corpus = [{"_id": f"d{i}", "title": f"title {i}", "text": f"words about {i}", "lang": "en"} for i in range(8)]
    write_lines(tmp_path / "corpus.jsonl", [*corpus, {"_id": "p", "image": "one.png"}, "no id"])
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.txt").write_text("ein rotes Herz")
    noise(56, 84, 2).save(tmp_path / "files" / "b.png")
    write_lines(tmp_path / "queries.jsonl", [{"_id": "q1", "text": "words about 3"}, {"_id": "q2", "image": "one.png"}])
    return tmp_path


@pytest.fixture
def run(capsys, tiny_directory):
    def run(*arguments, model=True):
        options = ("--model", tiny_directory, "--dtype", "float32") if model else ()
        status = main([str(argument) for argument in (*arguments, *options)])
        output = capsys.readouterr()
        return status, output.out, output.err

    return run


def test_a_run_of_records_and_files(run, folder, tiny):
    out = folder / "out.trec"
    status, printed, err = run(
        "rank", "--queries", folder / "queries.jsonl", "--write-run", out, folder / "corpus.jsonl", folder / "files"
    )
    assert (status, printed) == (0, "")
    assert "24 pairs scored." in err
    found = read_run(out)
    names = {f"d{i}" for i in range(8)} | {"p", f"{folder}/corpus.jsonl:10", f"{folder}/files/a.txt", f"{folder}/files/b.png"}
    assert set(found["q1"]) == set(found["q2"]) == names
    documents = {"d3": "title 3\nwords about 3", "p": {"image": folder / "one.png"}, f"{folder}/files/a.txt": "ein rotes Herz"}
    for query, content in (("q1", "words about 3"), ("q2", {"image": folder / "one.png"})):
        alone = {list(documents)[r.index]: r.logit for r in tiny.rank(content, list(documents.values()))}
        assert {key: found[query][key] for key in documents} == pytest.approx(alone, abs=1e-5)
    before = out.read_bytes()
    _, _, err = run("rank", folder / "corpus.jsonl", "--queries", folder / "queries.jsonl", "--write-run", out)
    assert "0 pairs scored, 20 were scored before." in err
    assert len(out.read_bytes()) < len(before)


def test_json_lines_and_standard_output(run, folder):
    arguments = ("rank", "--queries", folder / "queries.jsonl", "--top-n", 2, folder / "corpus.jsonl")
    _, lines, _ = run(*arguments, "--json")
    rows = [json.loads(line) for line in lines.splitlines()]
    assert [row["query"] for row in rows] == ["q1", "q2"]
    assert all(len(row["results"]) == 2 for row in rows)
    _, trec, _ = run(*arguments)
    assert [line.split()[2] for line in trec.splitlines()] == [r["id"] for row in rows for r in row["results"]]
    for out, more in (("out.jsonl", ()), ("out.txt", ("--json",))):
        run(*arguments, "--write-run", folder / out, *more)
        assert (folder / out).read_text() == lines
    _, lines, _ = run("rank", "--queries", folder / "queries.jsonl", folder / "corpus.jsonl", "--json")
    metadata = {result["id"]: result.get("metadata") for result in json.loads(lines.splitlines()[0])["results"]}
    assert metadata == {**{f"d{i}": {"lang": "en"} for i in range(8)}, "p": None, f"{folder}/corpus.jsonl:10": None}


def test_standard_input(run, folder, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO('plain words\n{"_id": "x", "text": "an object"}\n{broken\n'))
    status, trec, err = run("rank", "--queries", folder / "queries.jsonl", "-")
    assert status == 1
    assert {line.split()[2] for line in trec.splitlines()} == {"-:1", "x"}
    assert "-, line 3: the line is not JSON" in err


def test_candidates_name_what_is_not_there(run, folder):
    lines = ["q1 Q0 d1 1 2.0 bm25", "q1 Q0 gone 2 1.0 bm25", "q2 Q0 d2 1 1.0 bm25", "q9 Q0 d2 1 1.0 bm25"]
    (folder / "first.trec").write_text("\n".join(lines) + "\n")
    arguments = ("rank", "--queries", folder / "queries.jsonl", "--candidates", folder / "first.trec", folder / "corpus.jsonl")
    status, trec, err = run(*arguments)
    assert status == 0
    assert [line.split()[:3] for line in trec.splitlines()] == [["q1", "Q0", "d1"], ["q2", "Q0", "d2"]]
    assert "the candidates hold 1 document that is not there, not ranked: gone." in err
    assert "the candidates are of 1 query that is not asked, too: q9." in err


def test_what_fails_is_named_and_the_rest_ranked(run, folder):
    write_lines(
        folder / "more.jsonl", [{"_id": "b", "image": "absent.png"}, {"_id": "n", "other": 1}, 5, {"_id": "g", "text": "good"}]
    )
    status, trec, err = run("rank", "--queries", folder / "queries.jsonl", folder / "more.jsonl", folder / "absent.txt")
    assert status == 1
    assert {line.split()[2] for line in trec.splitlines()} == {"g"}
    for words in (
        "absent.png",
        "more.jsonl, line 2: the record has no field",
        "2 of its 4 records cannot be used",
        "absent.txt does not exist",
    ):
        assert words in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--queries", "no.jsonl", "corpus.jsonl"), "no.jsonl does not exist."),
        (("--queries", "corpus.trec", "corpus.jsonl"), "is no file of queries"),
        (("--queries", "queries.jsonl", "corpus.jsonl", "corpus.jsonl"), "the document id 'd0' occurs twice"),
        (("--queries", "queries.jsonl", "files/absent.txt"), "there are no documents."),
        (("--queries", "queries.jsonl", "--write-run", "corpus.jsonl", "corpus.jsonl"), "corpus.jsonl is one of the documents"),
        (("--queries", "queries.jsonl", "--write-run", "queries.jsonl", "corpus.jsonl"), "is the file of queries"),
        (
            ("--queries", "queries.jsonl", "--write-run", "f.trec", "--candidates", "f.trec", "files"),
            "is the file of candidates",
        ),
        (("--queries", "queries.jsonl", "--write-run", "files/out.jsonl", "files"), "would be read as a document"),
        (("--queries", "queries.jsonl", "--write-run", "files", "corpus.jsonl"), "files is a folder"),
        (("--queries", "queries.jsonl", "--image-query", "corpus.jsonl"), "--image-query is of one query"),
        (("--queries", "queries.jsonl", "--top-n", "0", "corpus.jsonl"), "top_n is 0"),
        (("--queries", "queries.jsonl", "with blanks.txt"), "a TREC run cannot keep the id"),
    ],
)
def test_mistakes_get_one_sentence(run, folder, monkeypatch, arguments, words):
    monkeypatch.chdir(folder)
    (folder / "f.trec").write_text("q1 Q0 d1 1 2.0 bm25\n")
    (folder / "with blanks.txt").write_text("words")
    status, out, err = run("rank", *arguments)
    assert (status, out) == (2, "")
    assert words in err
    assert "Traceback" not in err
    assert len(json.loads((folder / "queries.jsonl").read_text().splitlines()[0])) == 2  # nothing was written over it


def test_every_positional_argument_is_a_document():
    def parse(*words):
        return parser().parse_args(["rank", *words])

    for words in (
        ("--queries", "q.tsv", "a", "b"),
        ("a", "b", "--queries=q.tsv"),
        ("--queries", "q.tsv", "--json", "--", "a", "b"),
    ):
        options = parse(*words)
        assert (options.query, options.documents, options.queries) == (None, ["a", "b"], "q.tsv")
        assert options.run.__name__ == "run_rank_many"
    assert parse("--queries", "q.tsv", "a").documents == ["a"]
    plain = parse("q", "--json", "a")
    assert (plain.query, plain.documents, plain.run.__name__) == ("q", ["a"], "run_rank")


@pytest.mark.parametrize(
    "words",
    [("--queries", "q.tsv"), ("q",), ("q", "a", "--write-run", "x"), ("q", "a", "--candidates", "x"), ("a", "--queries")],
)
def test_what_the_parser_refuses(words, capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["rank", *words])
    assert "error:" in capsys.readouterr().err


def test_kill_nine(run, tiny_directory, tmp_path):
    """A real process, really killed; what goes on computes the rest alone, and the same bits."""
    write_lines(tmp_path / "corpus.jsonl", [{"_id": f"d{i}", "text": f"words about {i} " * (1 + i % 9)} for i in range(400)])
    write_lines(tmp_path / "queries.jsonl", [{"_id": f"q{i}", "text": f"query {i}"} for i in range(4)])
    arguments = ["rank", "--queries", "queries.jsonl", "corpus.jsonl", "--model", str(tiny_directory), "--dtype", "float32"]
    command = [sys.executable, "-m", "m0", *arguments, "--batch-tokens", "64", "--write-run"]
    options = {"cwd": tmp_path, "env": ENVIRONMENT}
    process = subprocess.Popen([*command, "out.trec"], **options, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    log, deadline = tmp_path / "out.trec.scores", time.monotonic() + 100
    while not (log.exists() and END_OF_GROUP in log.read_bytes()):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out.trec").exists(), "it was not killed in time"
    errors = {}
    for name in ("out.trec", "whole.trec"):
        done = subprocess.run([*command, name], **options, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        errors[name] = done.stderr
    assert "1,600 pairs scored." in errors["whole.trec"]
    before = int(errors["out.trec"].partition("scored, ")[2].split()[0].replace(",", ""))
    assert 0 < before < 1600
    assert f"{1600 - before:,} pairs scored" in errors["out.trec"]
    assert (tmp_path / "out.trec").read_bytes() == (tmp_path / "whole.trec").read_bytes()
    assert log.read_bytes() == (tmp_path / "whole.trec.scores").read_bytes()


def test_two_processes_do_as_one(run, folder, tiny_directory):
    (folder / "files" / "broken.png").write_bytes(b"\x89PNG")
    arguments = ("rank", "--queries", folder / "queries.jsonl", folder / "corpus.jsonl", folder / "files", "--write-run")
    run(*arguments, folder / "alone.trec")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", "-m", "m0", *map(str, arguments), str(folder / "out.trec")]
    command += ["--model", str(tiny_directory), "--dtype", "float32"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    alone, shared = read_run(folder / "alone.trec"), read_run(folder / "out.trec")
    for query in alone:
        assert shared[query] == pytest.approx(alone[query], abs=1e-5)
    assert done.stderr.count("broken.png") == 1
    assert "24 pairs scored." in done.stderr
    sizes = [path.read_text().count("\n[") for path in sorted(folder.glob("out.trec.scores*"))]
    assert len(sizes) == 2
    assert sum(sizes) == 12
    assert min(sizes) >= 5
    _, _, err = run(*arguments, folder / "out.trec")  # one process goes on with what two have scored
    assert "0 pairs scored, 24 were scored before." in err
    assert read_run(folder / "out.trec") == shared
