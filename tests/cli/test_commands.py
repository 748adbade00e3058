"""The command line: what it reads, what it prints, and how it fails."""

import base64
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from m0.checkpoints.hub import locate
from m0.cli.formatting import format_table
from m0.cli.main import main
from tests.conftest import noise

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("ein rotes Herz", encoding="utf-8")
    (tmp_path / "sub" / "b.md").write_text("# 猫\nzwei Zeilen", encoding="utf-8")
    noise(60, 60).save(tmp_path / "sub" / "c.png")
    noise(60, 60, 1).save(tmp_path / "d.webp")
    (tmp_path / "weights.bin").write_bytes(b"\0\1\2")
    (tmp_path / "list.jsonl").write_text(
        '"just text"\n\n{"text": "an object"}\n{"image": "sub/c.png"}\n["mixed", {"image": "d.webp"}]\n', encoding="utf-8"
    )
    return tmp_path


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return status, output.out, output.err


def rank_json(capsys, tiny_directory, *arguments):
    status, out, err = run(capsys, "rank", *arguments, "--model", tiny_directory, "--json")
    return status, json.loads(out) if out else None, err


def test_a_directory(capsys, tiny_directory, folder):
    status, report, err = rank_json(capsys, tiny_directory, "a query", folder)
    assert status == 0
    assert len(report["results"]) == 8
    scores = [result["score"] for result in report["results"]]
    assert scores == sorted(scores, reverse=True)
    assert {result["index"] for result in report["results"]} == set(range(8))
    assert "1 BIN left out" in err


def test_files_and_top_n(capsys, tiny_directory, folder):
    status, report, _ = rank_json(capsys, tiny_directory, "q", folder / "a.txt", folder / "sub/c.png", "--top-n", 1)
    assert status == 0
    assert len(report["results"]) == 1


def test_the_same_scores_as_from_python(capsys, tiny, tiny_directory, folder):
    _, report, _ = rank_json(capsys, tiny_directory, "q", folder / "list.jsonl", "--dtype", "float32")
    documents = ["just text", "an object", {"image": folder / "sub/c.png"}, ["mixed", {"image": folder / "d.webp"}]]
    expected = {result.index: result.logit for result in tiny.rank("q", documents)}
    assert {result["index"]: result["logit"] for result in report["results"]} == pytest.approx(expected, abs=1e-6)
    assert [result["name"].rpartition(":")[2] for result in sorted(report["results"], key=lambda r: r["index"])] == list("1345")


def test_a_picture_as_query(capsys, tiny, tiny_directory, folder):
    _, report, _ = rank_json(capsys, tiny_directory, folder / "d.webp", folder / "a.txt", "--image-query", "--dtype", "float32")
    assert report["results"][0]["score"] == pytest.approx(tiny.score([({"image": folder / "d.webp"}, "ein rotes Herz")])[0])


def test_standard_input(capsys, tiny_directory, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO('plain words\n{"text": "an object"}\n"a string"\n12\n{broken\n'))
    status, report, err = rank_json(capsys, tiny_directory, "q", "-")
    assert status == 1
    assert len(report["results"]) == 4
    assert report["failed"][0]["name"] == "-"
    assert "-, line 5: the line is not JSON" in err
    assert "1 of its 5 records cannot be used." in err


def test_a_full_disk_for_kept_documents_is_told_and_nothing_else_changes(
    capsys, tiny_directory, folder, tmp_path_factory, monkeypatch
):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    # Long enough to be worth keeping.
    (folder / "long.jsonl").write_text(json.dumps("ein rotes Herz " * 40) + "\n" + json.dumps("zwei Zeilen " * 40) + "\n")
    _, expected, _ = rank_json(capsys, tiny_directory, "q", folder / "long.jsonl", "--dtype", "float32")
    monkeypatch.setattr("m0.engine.prefix_cache.write_atomically", full)
    kept = tmp_path_factory.mktemp("kept")
    status, report, err = rank_json(
        capsys, tiny_directory, "q", folder / "long.jsonl", "--dtype", "float32", "--documents-folder", kept
    )
    assert status == 0
    assert f"m0: 2 of the documents could not be kept in {kept}" in err
    logits = {result["index"]: result["logit"] for result in report["results"]}
    assert logits == pytest.approx({result["index"]: result["logit"] for result in expected["results"]}, abs=1e-5)


def test_a_picture_in_base64_is_no_path(capsys, tiny_directory, tmp_path):
    buffer = io.BytesIO()
    noise(56, 56, 2).save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode().replace("/", "+")  # no folder in it, if perhaps no picture either
    (tmp_path / "d.jsonl").write_text(json.dumps({"image": text[:900]}) + "\n" + json.dumps("just text") + "\n")
    status, report, err = rank_json(capsys, tiny_directory, "q", tmp_path / "d.jsonl")
    assert status == 1
    assert len(report["results"]) == 1
    assert "d.jsonl:1" in err


def test_help_comes_before_pytorch():
    code = "import sys\nfrom m0.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_a_table_for_people(capsys, tiny_directory, folder):
    status, out, _ = run(capsys, "rank", "q", folder, "--model", tiny_directory)
    assert status == 0
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["rank", "score", "name"]
    assert [line.split()[0] for line in lines[1:]] == [str(place) for place in range(1, 9)]
    assert "[picture]" in out


def test_what_fails_is_named_and_the_rest_ranked(capsys, tiny_directory, folder):
    (folder / "broken.png").write_bytes(b"\x89PNG")
    (folder / "latin.txt").write_bytes("é".encode("latin-1"))
    status, report, err = rank_json(
        capsys, tiny_directory, "q", folder / "a.txt", folder / "broken.png", folder / "latin.txt", "no.txt"
    )
    assert status == 1
    assert [result["index"] for result in report["results"]] == [0]
    assert sorted(failed["index"] for failed in report["failed"]) == [1, 2, 3]
    for words in (
        "broken.png is not a picture",
        "latin.txt is neither a picture by its name nor text",
        "no.txt does not exist",
    ):
        assert words in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rank", "q", "no-such-file"], "there is no document to rank"),
        (["rank", "", "{file}"], "the query is empty"),
        (["rank", "q", "{file}", "--model", "nothing"], "'nothing' is neither"),
        (["rank", "q", "{file}", "--dtype", "int4"], "dtype is 'int4'"),
        (["rank", "q", "{file}", "--top-n", "0"], "top_n is 0"),
        (["rank", "q", "{file}", "--max-length", "4"], "max_length is 4"),
        (["info", "nothing"], "'nothing' is neither"),
        (["fetch", "nothing"], "'nothing' is not a hub id"),
    ],
)
def test_mistakes_get_a_sentence_and_status_2(capsys, folder, arguments, message):
    status, out, err = run(capsys, *(argument.format(file=folder / "a.txt") for argument in arguments))
    assert status == 2
    assert out == ""
    assert message in err
    assert "Traceback" not in err


def test_info(capsys, tiny_directory):
    status, out, _ = run(capsys, "info", tiny_directory)
    assert status == 0
    for words in ("vision tower", "decoder", "score head", "stored as F32", "memory needed"):
        assert words in out
    status, out, _ = run(capsys, "info", "m0-nano", "--json")
    report = json.loads(out)
    parts = report["parameters"]
    assert parts["total"] == parts["vision"] + parts["decoder"] + parts["head"]
    assert 5e6 < parts["total"] < 15e6


def test_the_table_fits_and_cannot_steer_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    table = format_table([(0.5, "a-very-long-name-" * 4, "\x1b[31mred\x1b[0m and 日本語の文章 " * 9), (0.25, "短い", "x")])
    assert "\x1b" not in table
    from m0.cli.formatting import _width

    assert all(_width(line) <= 70 for line in table.splitlines())


@pytest.mark.parametrize(
    ("logits", "shown"),
    [
        ([2.0, 1.0], False),
        ([25.0, 24.0, 23.0], True),  # relevances 1.0000
        ([-20.0, -21.0], True),  # and 0.0000
        ([25.0, 25.0], False),  # a tie, which logits show no better
        ([25.0, 25.0 - 1e-6], False),
        ([25.0, 2.0, 1.99999], False),
        ([2.001, 2.0009], True),  # two neighbours anywhere
        ([25.0], False),
        ([], False),
    ],
)
def test_logits_show_where_scores_hide_the_order(monkeypatch, logits, shown):
    monkeypatch.setenv("COLUMNS", "80")
    rows = [(1 / (1 + math.exp(2.65 - logit)), f"{number}.txt", "words " * 30) for number, logit in enumerate(logits)]
    table = format_table(rows, logits)
    lines = table.splitlines()
    assert ("logit" in table) == shown
    assert len(lines) == (len(logits) + 1 if logits else 0)
    assert all(len(line) <= 80 for line in lines)
    if shown:
        assert lines[0].split() == ["rank", "score", "logit", "name", "document"]
        assert [line.split()[2] for line in lines[1:]] == [f"{logit:.4f}" for logit in logits]
    assert "logit" not in format_table(rows)


def test_a_table_of_nothing_is_not_printed(capsys, tiny_directory, folder):
    (folder / "broken.png").write_bytes(b"\x89PNG")
    for command in ("rank", "explain"):
        status, out, err = run(capsys, command, "q", folder / "broken.png", "--model", tiny_directory)
        assert status == 2
        assert out == ""
        assert "broken.png" in err


def test_the_table_of_near_certain_relevances(capsys, tiny_directory, folder, monkeypatch):
    monkeypatch.setattr("m0.engine.ranking.relevance", lambda logits, bias: torch.sigmoid(logits + 30))
    status, out, _ = run(capsys, "rank", "q", folder / "a.txt", folder / "sub" / "b.md", "--model", tiny_directory)
    assert status == 0
    logits = [float(line.split()[2]) for line in out.splitlines()[1:]]
    assert logits == sorted(logits, reverse=True)
    assert len(set(logits)) == 2


def test_odd_names_and_bytes_get_a_sentence(capsys, tiny_directory, folder, monkeypatch):
    status, _, err = run(capsys, "rank", "q", "x" * 300, "--model", tiny_directory)
    assert status == 2
    assert "cannot be read" in err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xe9 words\n")))
    status, _, err = run(capsys, "rank", "q", "-", "--model", tiny_directory)
    assert status == 2
    assert "-, line 1: the line is not UTF-8 at its byte 0" in err


def test_line_separators_and_deep_json(capsys, tiny_directory, tmp_path):
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": "one\u2028two"}\n' + "[" * 50_000 + "\n", encoding="utf-8")
    status, report, err = rank_json(capsys, tiny_directory, "q", lines)
    assert status == 1
    assert [result["name"] for result in report["results"]] == [f"{lines}:1"]
    assert f"{lines}, line 2: the record" in err


@pytest.mark.parametrize("encoding", ["ascii", "utf-8:strict"])
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_names_that_the_terminal_cannot_write(tiny_directory, tmp_path, encoding, flags):
    folder = os.fsencode(tmp_path / "ünï")
    os.mkdir(folder)
    for name in ("ä.txt".encode(), b"\xff\xfe.txt"):
        with open(os.path.join(folder, name), "w") as file:
            file.write("words")
    command = [sys.executable, "-m", "m0.cli.main", "rank", "q", folder, "--model", str(tiny_directory), *flags]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    if flags:
        assert len(json.loads(done.stdout)["results"]) == 2


def test_hidden_folders_are_left_alone_and_broken_links_named(capsys, tiny_directory, folder):
    (folder / "sub" / ".hidden").mkdir()
    (folder / "sub" / ".hidden" / "x.txt").write_text("words")
    (folder / "broken.txt").symlink_to("nowhere")
    status, report, err = rank_json(capsys, tiny_directory, "q", folder)
    assert status == 1
    assert "broken.txt is a link to what does not exist" in err
    assert not any(".hidden" in result["name"] for result in report["results"])


def test_folders_that_cannot_be_read_are_named(capsys, tiny_directory, folder, monkeypatch):
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    status, report, err = rank_json(capsys, tiny_directory, "q", folder)
    assert status == 1
    assert f"{folder / 'sub'} cannot be read: Permission denied" in err
    assert any(result["name"].endswith("a.txt") for result in report["results"])


def test_a_full_disk_gets_a_sentence(tiny_directory, folder):
    command = [sys.executable, "-m", "m0", "rank", "q", str(folder / "a.txt"), "--model", str(tiny_directory)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "m0: the output cannot be written: No space left on device.\n"


def test_a_picture_as_a_query_without_the_flag_is_said(capsys, tiny_directory, folder):
    _, _, err = run(capsys, "rank", folder / "sub" / "c.png", folder / "a.txt", "--model", tiny_directory)
    assert "is read as text; --image-query shows the picture" in err


def test_warnings_are_said_as_the_other_messages_are(tmp_path, capsys):
    import warnings

    before = warnings.showwarning
    (tmp_path / "documents.jsonl").write_text('"a needle"\n')
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        before = warnings.showwarning
        assert main(["rank", "README.md", str(tmp_path / "documents.jsonl")]) == 0
        assert warnings.showwarning is before
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).symlink_to(locate("m0-nano").resolve() / name)
    settings = {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136}
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "max_pixels": 12544}))
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": {**settings, "max_pixels": 25088}}))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["rank", "q", str(tmp_path / "documents.jsonl"), "--model", str(folder)]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "contradicts" in line]
    assert line.startswith("m0: ")
    assert "UserWarning" not in line


def test_without_the_matrix(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a needle that points north")
    arguments = ["explain", "compass", str(tmp_path / "a.txt"), "--json"]
    for extra, expected in (([], True), (["--no-matrix"], False), (["--no-matrix", "--method", "occlusion"], False)):
        assert main([*arguments, *extra]) == 0
        assert ("interaction" in json.loads(capsys.readouterr().out)["results"][0]) is expected


def run_closed(redirections, *arguments, **options):
    """The command in a shell that closes some of its streams."""
    line = " ".join([sys.executable, "-m", "m0", *arguments, redirections])
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=120, check=False, **options)


def test_closed_streams(tmp_path):
    """As services and schedulers start programs; Python has None for such streams."""
    (tmp_path / "a.txt").write_text("a needle that points north")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = run_closed("<&-", "rank", "compass", "-", cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr.strip().splitlines()[0]) == (2, "m0: standard input is closed.")
    done = run_closed(">&-", "rank", "compass", "a.txt", cwd=tmp_path, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = run_closed("2>&-", "rank", "--json", "compass", "nope.txt", "a.txt", cwd=tmp_path, env=environment)
    assert done.returncode == 1
    assert [failed["name"] for failed in json.loads(done.stdout)["failed"]] == ["nope.txt"]


def test_names_of_nothing(capsys):
    assert main(["rank", "q", " ", "file:///somewhere/a.txt"]) == 2
    said = capsys.readouterr().err
    assert "a document is named by empty text" in said
    assert "give the path without file://" in said
