"""What arguments of the command line stand for, and what is said of those that stand for nothing."""

import http.server
import io
import json
import os
import threading

import pytest

from m0.cli.folders import MAX_NAMED_KINDS
from m0.cli.main import main
from m0.cli.sources import is_address, read_sources
from tests.conftest import noise


def read(argument):
    """Documents by name, errors, and what was said."""
    said = []
    sources = list(read_sources(str(argument), said.append))
    return {s.name: s.document for s in sources if s.error is None}, [s.error for s in sources if s.error is not None], said


# --- folders ------------------------------------------------------------------------------------------------------------


def test_what_is_left_out_of_a_folder_is_counted_and_named(tmp_path):
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    (folder / "sub" / ".git").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    elsewhere.mkdir()
    for name in ("a.mp4", "b.MP4", "sub/c.mp4", "d.xls", "Makefile", "sub/LICENSE", "x.\x1b[31m", "y.averylongsuffix"):
        (folder / name).write_text("words")
    for name in (".env", "sub/.DS_Store", "a.txt", "sub/.git/b.txt", ".hidden/c.txt"):
        (folder / name).write_text("words")
    (elsewhere / "d.txt").write_text("words")
    (folder / "link").symlink_to(elsewhere)
    (folder / "sub" / "circle").symlink_to(folder)
    (folder / ".hidden link").symlink_to(elsewhere)
    (folder / "e.txt").symlink_to(elsewhere / "d.txt")  # to a file: followed
    os.mkfifo(folder / "pipe.txt")
    documents, errors, said = read(folder)
    assert list(documents) == [str(folder / "a.txt"), str(folder / "e.txt")]
    assert errors == []
    assert said == [
        f"{folder}: 3 MP4, 1 XLS, 2 files of other kinds, 2 files without a suffix, 3 hidden folders, 2 hidden files, "
        "2 linked folders, 1 device, pipe or socket left out."
    ]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a.txt"], []),
        (["a.txt", "b.mp4"], ["1 MP4 left out."]),
        (["a.txt", "b"], ["1 file without a suffix left out."]),
        (["a.txt", ".b"], ["1 hidden file left out."]),
        (["a.txt", ".b/c"], ["1 hidden folder left out."]),
        (["a.jsonl", "b.mp4", "c.xlsx", "d.xlsx"], ["2 XLSX, 1 MP4 left out."]),
        (["a.txt", *(f"{n}.{k}" for n, k in enumerate("abcdefghij"))], ["1 A, 1 B, 1 C, 1 D, 1 E, 1 F, 1 G, 1 H, 2 files of other kinds left out."]),
    ],
)  # fmt: skip
def test_how_it_is_said(tmp_path, names, words):
    assert MAX_NAMED_KINDS == 8
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('"words"')
    documents, errors, said = read(tmp_path)
    assert len(documents) == 1
    assert errors == []
    assert said == [f"{tmp_path}: {sentence}" for sentence in words]


@pytest.mark.parametrize(
    ("names", "words"),
    [([], "."), (["a.mp4", "b.mp4"], " (2 MP4 left out)."), ([".a.txt"], " (1 hidden file left out).")],
)
def test_a_folder_of_nothing_that_is_read(tmp_path, names, words):
    for name in names:
        (tmp_path / name).write_text("words")
    assert read(tmp_path) == ({}, [f"{tmp_path} holds no text files, pictures or pages{words}"], [])


def test_links_as_arguments_are_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("words")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert list(read(tmp_path / "link")[0]) == [str(tmp_path / "link" / "a.txt")]


def test_it_is_said_on_stderr_beside_the_ranking(tmp_path, tiny_directory, capsys):
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "b.mp4").write_text("words")
    assert main(["rank", "q", str(tmp_path), "--model", str(tiny_directory), "--json"]) == 0
    output = capsys.readouterr()
    assert len(json.loads(output.out)["results"]) == 1
    assert output.err == f"m0: {tmp_path}: 1 MP4 left out.\n"


def test_a_file_that_cannot_be_looked_at(tmp_path, monkeypatch):
    """As in a folder that may be listed and not entered."""
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("words")
    stat = os.stat

    def closed(path, **more):
        if str(path).endswith("a.txt"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **more)

    monkeypatch.setattr(os, "stat", closed)
    documents, errors, _ = read(tmp_path)
    assert list(documents) == [str(tmp_path / "b.txt")]
    assert errors == [f"{tmp_path / 'a.txt'} cannot be read: Permission denied."]


# --- files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks(tmp_path, codec, monkeypatch):
    (tmp_path / "a.txt").write_bytes("zwei Hünde".encode(codec))
    (tmp_path / "b.jsonl").write_bytes('"zwei Hünde"\n{"text": "猫"}\n'.encode(codec))
    assert list(read(tmp_path / "a.txt")[0].values()) == [{"text": "zwei Hünde"}]
    assert list(read(tmp_path / "b.jsonl")[0].values()) == [{"text": "zwei Hünde"}, {"text": "猫"}]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("plain\n".encode(codec))))  # as PowerShell writes to a pipe
    assert list(read("-")[0].values()) == [{"text": "plain"}]


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        (
            "a.txt",
            b"a\0b",
            "{} is not text, for it holds a NUL at character 1; UTF-16 is read where it begins with a byte order mark.",
        ),
        ("a.jsonl", "no mark".encode("utf-16-le"), "{}, line 1: the line is not JSON"),
        ("a.txt", b"\xe9", "{} is neither a picture by its name nor text in UTF-8 at byte 0."),
        ("a", b"\xe9", "{} is neither a picture by its name nor text in UTF-8 at byte 0."),
        ("a.pdf", b"%PDF-1.4", "{} is damaged, cut short or no PDF"),
    ],
)
def test_what_is_not_text(tmp_path, name, data, sentence):
    (tmp_path / name).write_bytes(data)
    ((error,),) = (read(tmp_path / name)[1],)
    assert error.startswith(sentence.format(tmp_path / name))


def test_standard_input_that_is_not_text(monkeypatch):
    for data, words in (
        (b"a\0b", "-, line 1: the line holds a NUL"),
        (b"\xe9", "-, line 1: the line is not UTF-8 at its byte 0"),
    ):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert read("-")[1][0].startswith(words)


def test_a_file_without_a_kind_is_what_it_holds(tmp_path):
    noise(60, 60).save(tmp_path / "a", "PNG")
    (tmp_path / "b.yaml").write_text("words")
    assert read(tmp_path / "a")[0] == {str(tmp_path / "a"): {"image": str(tmp_path / "a")}}
    assert read(tmp_path / "b.yaml")[0] == {str(tmp_path / "b.yaml"): {"text": "words"}}


def test_a_pipe_is_read_once(tmp_path):
    """As `m0 rank q <(command)` gives it."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("words"))
    writer.start()
    assert list(read(tmp_path / "pipe")[0].values()) == [{"text": "words"}]
    writer.join()


@pytest.mark.parametrize(
    ("argument", "words"), [("", "empty text"), ("no.txt", "no.txt does not exist."), ("x" * 300, "cannot be read")]
)
def test_names_of_nothing(argument, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    documents, errors, _ = read(argument)
    assert documents == {}
    assert words in errors[0]


def test_json_lines_too_deep_and_with_addresses(tmp_path):
    noise(60, 60).save(tmp_path / "x.png")
    lines = ["[" * 900 + '"a"' + "]" * 900, '{"image": "HTTPS://host/x.png"}', '{"image": "x.png"}', '{"image": "gone.png"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    documents, errors, _ = read(tmp_path / "a.jsonl")
    assert list(documents.values())[-3:] == [
        {"image": "HTTPS://host/x.png"},
        {"image": str(tmp_path / "x.png")},
        {"image": str(tmp_path / "gone.png")},
    ]
    assert [error.partition(", line 1: ")[2][:40] for error in errors] == ["a part of the record is a list, but must"]


# --- addresses ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server():
    buffer = io.BytesIO()
    noise(60, 60).save(buffer, "PNG")
    pages = {"/x.png": ("image/png", buffer.getvalue()), "/misnamed": ("text/plain", buffer.getvalue())}
    pages |= {
        "/page": ("text/html", b"<!doctype html>words"),
        "/words.txt": ("text/plain", b"words"),
        "/empty.png": ("image/png", b""),
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path not in pages:
                self.send_error(404)
                return
            kind, data = pages[self.path]
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_addresses_of_pictures(server, tmp_path, tiny, tiny_directory, capsys):
    noise(60, 60).save(tmp_path / "x.png")
    arguments = [f"{server}/x.png", f"{server}/misnamed", f"{server.upper()}/x.png", str(tmp_path / "x.png")]
    assert main(["rank", "q", *arguments, "--model", str(tiny_directory), "--dtype", "float32", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert sorted(result["name"] for result in results) == sorted(arguments)
    assert {result["logit"] for result in results} == {tiny.rank("q", [tmp_path / "x.png"])[0].logit}
    assert main(["rank", f"{server}/x.png", "--image-query", f"{server}/x.png", "--model", str(tiny_directory)]) == 0
    assert "[picture]" in capsys.readouterr().out


def test_addresses_of_other_things_get_a_sentence_and_the_rest_is_ranked(server, tmp_path, tiny_directory, capsys):
    (tmp_path / "a.txt").write_text("words")
    wrong = {
        "page": "answered text/html, not a picture.",
        "words.txt": "answered text/plain, not a picture.",
        "gone.png": "answered 404 Not Found.",
        "empty.png": "is empty.",
    }
    arguments = [str(tmp_path / "a.txt"), *(f"{server}/{name}" for name in wrong), "http://127.0.0.1:9/x.png"]
    assert main(["rank", "q", *arguments, "--model", str(tiny_directory), "--json"]) == 1
    output = capsys.readouterr()
    assert len(json.loads(output.out)["results"]) == 1
    for name, words in wrong.items():
        assert f"m0: {server}/{name} {words}\n" in output.err
    assert "m0: http://127.0.0.1:9/x.png did not answer: " in output.err
    assert main(["rank", "q", f"{server}/gone.png", "--model", str(tiny_directory)]) == 2
    output = capsys.readouterr()
    assert output.out == ""  # no table of nothing
    assert "404" in output.err


def test_an_address_as_query_without_the_flag_is_said(server, tmp_path, tiny_directory, capsys):
    (tmp_path / "a.txt").write_text("words")
    main(["rank", f"{server}/x.png", str(tmp_path / "a.txt"), "--model", str(tiny_directory)])
    assert "is read as text; --image-query shows the picture" in capsys.readouterr().err


def test_what_is_an_address():
    assert all(map(is_address, ("http://a", "https://a/b", "HTTPS://A", "data:image/png;base64,AAAA")))
    assert not any(map(is_address, ("a.png", "http", "https:/a", "ftp://a", "data", "data:", "~/http://a")))
