"""Text and pictures from files: by name, by content, opened by the user, in several encodings."""

import asyncio
import codecs
import gzip
import io
import os
import socket
import tempfile
import threading
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from m0.errors import ImageError, InputError
from m0.inputs.images import ImageSettings, Picture, prepare_picture
from m0.inputs.reading import read_parts
from m0.inputs.texts import check_text, decode
from tests.conftest import noise

TEXT = "ein rotes Herz, 红心 ❤️"
SETTINGS = ImageSettings()


def read(value):
    return read_parts(value, "document", SETTINGS)


def png(seed=0):
    buffer = io.BytesIO()
    noise(60, 60, seed).save(buffer, "PNG")
    return buffer.getvalue()


def same_picture(parts, seed=0):
    (part,) = parts
    return isinstance(part, Picture) and part.digest == prepare_picture(noise(60, 60, seed)).digest


# --- encodings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "codec", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]
)
@pytest.mark.parametrize("text", [TEXT, "plain ASCII\r\n", "a", "\u4e00\ufeff", "😀" * 50])
def test_encodings_that_say_what_they_are(codec, text):
    marks = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
    marks |= {"utf-32-le": codecs.BOM_UTF32_LE, "utf-32-be": codecs.BOM_UTF32_BE}
    assert decode(marks.get(codec, b"") + text.encode(codec), "x.txt") == text


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("é".encode("latin-1"), "x is not text in UTF-8 at byte 0."),
        ("smart “quotes”".encode("cp1252"), "x is not text in UTF-8 at byte 6."),
        ("日本".encode("shift_jis"), "x is not text in UTF-8 at byte 0."),
        (codecs.BOM_UTF8 + b"abc\xff", "x is not text in UTF-8 at byte 6."),
        (codecs.BOM_UTF16_LE + b"a\0b", "x is not text in UTF-16 at byte 4."),
        (codecs.BOM_UTF16_BE + b"\0a\xd8\x00", "x is not text in UTF-16 at byte 4."),
        (codecs.BOM_UTF16_LE + b"\x00\xdca\0", "x is not text in UTF-16 at byte 2."),
        (codecs.BOM_UTF32_LE + b"a\0\0\0b", "x is not text in UTF-32 at byte 8."),
        (codecs.BOM_UTF32_BE + b"\0\x11\0\0", "x is not text in UTF-32 at byte 4."),
        (
            "no mark".encode("utf-16-le"),
            "x is not text, for it holds a NUL at character 1; UTF-16 is read where it begins with",
        ),
        ("no mark".encode("utf-16-be"), "x is not text, for it holds a NUL at character 0;"),
        (b"words\0", "x is not text, for it holds a NUL at character 5;"),
        (codecs.BOM_UTF16_LE + b"a\0\0\0", "x is not text, for it holds a NUL at character 1;"),
        (b"%PDF-1.7\nobj", 'x is a PDF, not text; give it as {"pdf": ...}, and for its text with "as": "text".'),
    ],
)
def test_what_is_not_text(data, sentence):
    with pytest.raises(InputError) as caught:
        decode(data, "x")
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_a_nul_in_a_string_of_a_program_is_a_character(tiny):
    assert read("a\0b") == ["a\0b"]
    assert len(tiny.rank("q", ["a\0b", {"text": "\0a"}])) == 2
    with pytest.raises(InputError, match="holds a NUL"):
        check_text("\0", "x")


# --- paths --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "A.TXT", "a.md", "a.json", "a.yaml", "README", "a.c", "a.jsonl", "a.svg", ".hidden"])
@pytest.mark.parametrize("codec", ["utf-8", "utf-16"])
def test_a_path_to_a_text(tmp_path, name, codec):
    path = tmp_path / name
    path.write_bytes(TEXT.encode(codec))
    assert read(path) == read({"text": path}) == [TEXT]
    assert read([path, path]) == [TEXT, TEXT]
    with pytest.raises(ImageError, match="is not a picture that Pillow can open"):
        read({"image": path})


@pytest.mark.parametrize("name", ["a.png", "A.PNG", "a.jpg", "a", "a.bin", "a.tmp"])
def test_a_path_to_a_picture(tmp_path, name):
    """By its name, or by what it holds where the name says nothing."""
    path = tmp_path / name
    path.write_bytes(png())
    assert same_picture(read(path))
    assert same_picture(read({"image": path}))
    with pytest.raises(InputError, match="is not text in UTF-8 at byte 0"):
        read({"text": path})


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("a.txt", png(), "{} is neither a picture by its name nor text in UTF-8 at byte 0."),
        ("a.txt", b"caf\xe9", "{} is neither a picture by its name nor text in UTF-8 at byte 3."),
        ("a.dat", b"caf\xe9", "{} is neither a picture nor text in UTF-8 at byte 3."),
        ("a.dat", b"\x89PNG and nothing", "{} is neither a picture nor text in UTF-8 at byte 0."),
        ("a.dat", b"\0\1\2", "{} is not text, for it holds a NUL at character 0;"),
        ("a.md", b"a\0", "{} is not text, for it holds a NUL at character 1;"),
        ("a.pdf", b"%PDF-1.4", "{} is damaged, cut short or no PDF" if find_spec("pypdfium2") else "PDFs need pypdfium2"),
        ("a.docx", b"PK\3\4\x14\0\x06\0", "{} is damaged" if find_spec("mammoth") else "DOCX needs mammoth"),
        ("a.png", b"words", "{} is not a picture that Pillow can open."),
        ("a.txt", b"", "the document is empty."),
        ("a.txt", b" \n", "the document is empty."),
        ("a", b"", "the document is empty."),
        ("a.png", b"", "{} is empty."),
    ],
)
def test_a_path_to_neither(tmp_path, name, data, sentence):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith(sentence.format(path))


def test_paths_to_what_is_no_file(tmp_path):
    (tmp_path / "folder.txt").mkdir()
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "broken.txt").symlink_to("nowhere")
    for name, words in (
        ("folder.txt", "is a directory"),
        ("pipe.txt", "is not a file, but a device, pipe or socket"),
        ("broken.txt", "does not exist"),
        ("missing.txt", "does not exist"),
        ("missing", "does not exist"),
        ("a\0b.txt", "cannot be read|is not a path"),
        ("x" * 300 + ".txt", "cannot be read"),
    ):
        for value in (tmp_path / name, {"text": tmp_path / name}):
            with pytest.raises(InputError, match=words):
                read(value)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("words")

    def closed(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", closed)
    with pytest.raises(InputError, match=r"a\.txt cannot be read: Permission denied\.$"):
        read(tmp_path / "a.txt")


def test_ranked_and_warned_of(tiny, tmp_path):
    """A bare string stays text, and a warning says so where it names a file."""
    path = tmp_path / "a.txt"
    path.write_text("words")
    assert tiny.logits([("q", path)]) == tiny.logits([("q", "words")])
    assert tiny.logits([(path, "d")]) == tiny.logits([("words", "d")])
    with pytest.warns(UserWarning, match=r"is read as text; for what the file holds, pass a pathlib\.Path"):
        tiny.rank("q", [str(path)])
    assert tiny.compute_score([["q", path]]) == tiny.compute_score([["q", "words"]])


# --- open files ---------------------------------------------------------------------------------------------------------


def spooled(data):
    file = tempfile.SpooledTemporaryFile()  # noqa: SIM115
    file.write(data)
    file.seek(0)
    return file


def temporary(data):
    file = tempfile.TemporaryFile()  # noqa: SIM115
    file.write(data)
    file.seek(0)
    return file


def gzipped(data):
    return gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(data)))


def zipped(data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.png", data)
    return zipfile.ZipFile(buffer).open("x.png")


@pytest.mark.parametrize(
    "opened",
    [io.BytesIO, spooled, temporary, zipped, gzipped, lambda data: io.BufferedReader(io.BytesIO(data))],
    ids=["BytesIO", "spooled", "temporary", "zip", "gzip", "buffered"],
)
def test_open_pictures(opened):
    file = opened(png())
    for _ in range(2):  # it goes back to where it was
        assert same_picture(read(file))
        assert same_picture(read({"image": file}))
        assert same_picture([prepare_picture(file)])
    assert len(read(["words", file, {"image": file, "text": "and words"}])) == 4
    assert not file.closed
    assert file.tell() == 0


def test_files_opened_by_name(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "a.yaml").write_text(TEXT, encoding="utf-8")
    (tmp_path / "b").write_bytes(png(1))
    with open(tmp_path / "a.png", "rb") as file:
        assert same_picture(read(file))
        assert same_picture(read({"image": file}))
    with open(tmp_path / "b", "rb") as file:
        assert same_picture(read(file), 1)
    for name in ("a.txt", "a.yaml"):
        with open(tmp_path / name, encoding="utf-8") as file:
            assert read(file) == read({"text": file}) == read(file) == [TEXT]
        with open(tmp_path / name, "rb") as file:
            assert read(file) == read({"text": file}) == [TEXT]
    assert read(io.StringIO(TEXT)) == [TEXT]
    assert read({"text": io.BytesIO(TEXT.encode("utf-16"))}) == [TEXT]


def test_from_the_position_on():
    file = io.BytesIO(b"header" + png())
    file.seek(6)
    assert same_picture(read(file))
    assert file.tell() == 6
    words = io.StringIO("one two")
    words.seek(4)
    assert read(words) == read(words) == ["two"]
    file.seek(0, os.SEEK_END)
    with pytest.raises(InputError, match=r"the BytesIO is empty from its position on; seek\(0\) goes back"):
        read(file)


class OnlyReads:
    def read(self):
        return png()


class GivesNumbers(io.BytesIO):
    def read(self, size=-1):
        return 5


class Asynchronous(io.BytesIO):
    async def read(self, size=-1):
        return png()


class Fails(io.BytesIO):
    def read(self, size=-1):
        raise OSError("the disk is\ngone.")


def closed():
    file = io.BytesIO(png())
    file.close()
    return file


def begun():
    file = open(__file__, encoding="utf-8")  # noqa: SIM115
    next(file)  # after which Python no longer tells the position
    return file


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        (closed, "the BytesIO is closed."),
        (io.BytesIO, "the BytesIO is empty."),
        (io.StringIO, "the StringIO is empty."),
        (OnlyReads, "the OnlyReads cannot go back to be read again; give what its read() gives."),
        (lambda: os.fdopen(os.pipe()[0], "rb"), "the BufferedReader cannot go back to be read again"),
        (lambda: os.fdopen(os.pipe()[0]), "the TextIOWrapper cannot go back to be read again"),
        (lambda: socket.socketpair()[0].makefile("rb"), "the BufferedReader cannot go back"),
        (begun, f"the file {__file__} cannot go back to be read again"),
        (lambda: GivesNumbers(b"x"), "the GivesNumbers gives int when it is read, but must give bytes or text."),
        (lambda: Asynchronous(b"x"), "the Asynchronous gives coroutine when it is read"),
        (lambda: Fails(b"x"), "the Fails cannot be read: the disk is gone."),
        (lambda: os.fdopen(os.open(os.devnull, os.O_WRONLY), "wb"), "the BufferedWriter cannot be read: "),
        (lambda: io.BytesIO(b"words"), "the BytesIO is not a picture that Pillow can open."),
        (lambda: io.StringIO("a\0"), "the StringIO is not text, for it holds a NUL at character 1"),
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_files_that_cannot_be_used(tiny, file, sentence):
    value = file()
    with pytest.raises(InputError) as caught:
        read(value)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)
    with pytest.raises(ImageError):
        read({"image": value})
    assert len(tiny.rank("q", ["words", value], on_error="skip").failed) == 1
    if hasattr(value, "close"):
        value.close()


def test_a_picture_opened_as_text_and_a_text_as_a_picture(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with open(tmp_path / "a.png", encoding="utf-8") as file:
        for given in (file, {"image": file}, {"text": file}):
            with pytest.raises(
                InputError, match=r"a\.png is (opened as text|not text in utf-8); a picture is opened with 'rb'"
            ):
                read(given)
        assert not file.closed
    with open(tmp_path / "a.txt", encoding="utf-8") as file, pytest.raises(InputError, match=r"a\.txt is not text in utf-8"):
        read(file)
    with open(tmp_path / "a.txt", encoding="latin-1") as file:
        assert read(file) == ["café"]
    with pytest.raises(ImageError, match="the StringIO is opened as text"):
        read({"image": io.StringIO("words")})
    with pytest.raises(InputError, match='the "text" of a document part is int, but must be a string, path or open file'):
        read({"text": 5})


def test_ranked_more_than_once_and_given_back(tiny, tmp_path):
    documents = [io.BytesIO(png(1)), io.StringIO("words"), io.BytesIO(png(2))]
    expected = tiny.rank("q", [noise(60, 60, 1), "words", noise(60, 60, 2)])
    for _ in range(2):
        ranking = tiny.rank("q", documents)
        assert {r.index: r.logit for r in ranking} == {r.index: r.logit for r in expected}
        assert all(result.document is documents[result.index] for result in ranking)
    page = tiny.explain_ranking("q", documents, tmp_path / "x.html")  # reads each a second time
    assert len(page) == 3
    assert tiny.compute_score([["q", documents[0]]], doc_type="image") == tiny.score([("q", noise(60, 60, 1))])[0]
    assert tiny.logits([(documents[0], documents[1])]) == tiny.logits([(noise(60, 60, 1), "words")])


def test_the_same_file_many_times_and_from_several_threads(tiny):
    file = io.BytesIO(png())
    expected = tiny.logits([("q", noise(60, 60))])[0]
    assert {result.logit for result in tiny.rank("q", [file] * 20)} == {expected}
    wrong = []

    def reads():
        for _ in range(50):
            if not same_picture(read(file)):
                wrong.append(1)

    threads = [threading.Thread(target=reads) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_asynchronous_file_leaves_no_warning(recwarn):
    async def look():
        with pytest.raises(InputError, match="gives coroutine"):
            read(Asynchronous(b"x"))

    asyncio.run(look())
    assert not [warning for warning in recwarn if "never awaited" in str(warning.message)]
