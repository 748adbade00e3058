"""What lines of a dataset may name as a picture, numbers and encodings of its files, and runs that do not fit it."""

import base64
import functools
import http.server
import io
import json
import threading

import pytest

from m0.cli.main import main
from m0.errors import InputError
from m0.evaluate import Dataset, Evaluation, evaluate, evaluate_contrasts, load_contrasts, read_run
from m0.evaluate.files import resolve_picture
from m0.inputs.texts import BYTE_ORDER_MARKS
from tests.conftest import noise
from tests.evaluate.conftest import CORPUS, HEADER

pytest.importorskip("ir_measures")
pytest.importorskip("bm25s")


@pytest.fixture
def server(tmp_path):
    """The URL of a folder on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def encoded(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_addresses_are_pictures(tiny, write, server, tmp_path):
    folder, url = server
    image = noise(70, 60, seed=1)
    image.save(folder / "one.png")
    text = encoded(image)
    shown = {
        "u": f"{url}/one.png",
        "U": f"HTTP{url[4:]}/one.png",
        "d": f"data:image/png;base64,{text}",
        "b": text,
        "f": "one.png",
    }
    place = write(
        [*CORPUS, *({"_id": key, "image": value} for key, value in shown.items())],
        [{"_id": "q1", "image": shown["u"]}, {"_id": "q2", "text": "words", "image": shown["d"]}],
        HEADER + "q1\td1\t1\nq2\tu\t1\n",
    )
    image.save(place / "one.png")
    done = evaluate(tiny, Dataset.load(place), out=tmp_path / "out")
    assert not done.failed
    for query, asked in (("q1", {"image": place / "one.png"}), ("q2", ["words", {"image": place / "one.png"}])):
        expected = tiny.logits([(asked, {"image": place / "one.png"})])[0]
        assert [done.run[query][key] for key in shown] == pytest.approx([expected] * 5, abs=1e-5)
    (folder / "one.png").unlink()  # an address's scores are kept
    assert evaluate(tiny, Dataset.load(place), out=tmp_path / "out").run == done.run


def test_an_address_that_does_not_answer_is_listed(tiny, write, server):
    shown = {"u": f"{server[1]}/absent.png", "d": "data:image/png;base64,!!!!", "e": "data:"}
    dataset = Dataset.load(write([*CORPUS, *({"_id": key, "image": value} for key, value in shown.items())]))
    failed = evaluate(tiny, dataset).failed
    assert set(failed) == set(shown)
    assert "answered 404" in failed["u"]
    assert "is not valid base64" in failed["d"]


@pytest.mark.parametrize(
    "image", ["~nobody-of-this-name/b.png", "a\0b.png", "\ud800.png", "x" * 5000, "x" * 80, ".", "absent.png"]
)
@pytest.mark.parametrize("side", ["corpus", "queries"])
def test_a_picture_that_cannot_be_there_refuses_no_others(tiny, write, image, side):
    rows = {"corpus": CORPUS, "queries": [{"_id": "q1", "text": "compass"}]}
    rows[side] = [*rows[side], {"_id": "x", "image": image}]
    done = evaluate(tiny, Dataset.load(write(**rows, qrels=HEADER + "q1\td1\t1\nx\td1\t1\n")), measures=["RR"])
    what = "x" if side == "corpus" else "query x"
    assert what in done.failed
    assert done.run["q1"].keys() == {"d1", "d2"}


def test_contrasts_name_pictures_likewise(tiny, tmp_path):
    noise(60, 60, seed=1).save(tmp_path / "1.png")
    noise(60, 60, seed=2).save(tmp_path / "2.png")
    uri = f"data:image/png;base64,{encoded(noise(60, 60, seed=2))}"
    captions = {"caption_0": "one two", "caption_1": "two one"}
    found = []
    for second in ("2", "2.png", uri):
        line = json.dumps({**captions, "image_0": "1", "image_1": second})
        (tmp_path / "examples.jsonl").write_text(line + "\n", encoding="utf-8")
        found.append(evaluate_contrasts(tiny, load_contrasts(tmp_path)))
    assert found[0] == found[1] == found[2]
    captions["caption_0"] = "word " * 100
    line = json.dumps({**captions, "image_0": "1", "image_1": "2"})
    (tmp_path / "examples.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.warns(UserWarning, match="1 query was cut to fit"):
        evaluate_contrasts(tiny, load_contrasts(tmp_path), max_query_length=20)
    assert resolve_picture("~nobody-of-this-name/b", tmp_path, ".png") == str(tmp_path / "~nobody-of-this-name/b.png")


# --- candidates and runs that do not fit ------------------------------------------------------------------------------


def test_candidates_that_leave_nothing_to_rank(tiny, write):
    empty = {"_id": "e1", "text": ""}
    queries = [{"_id": "q1", "text": "compass"}, {"_id": "q2", "text": ""}, {"_id": "q3", "text": "mammal"}]
    qrels = HEADER + "q1\td1\t1\nq2\td1\t1\nq3\td2\t1\n"
    dataset = Dataset.load(write([*CORPUS, empty], queries, qrels))
    for candidates, reason in (
        ({"q1": ["e1"]}, "hold only documents that cannot be ranked, beginning with e1: .*line 3: has neither title"),
        ({"q1": ["x", "e1"]}, "cannot be ranked, and 1 document that the corpus lacks, beginning with e1: "),
        ({"q1": ["x"]}, "hold none of the dataset's documents, but such as 'x'"),
        ({"q1": []}, "name no document for any of the dataset's queries, beginning with q1"),
        ({"q2": ["d1"]}, "hold only queries that cannot be asked, beginning with q2: .*line 2: has neither title"),
        ({"q9": ["d1"]}, "hold none of the dataset's queries that have judgements, but such as 'q9'"),
        ({}, "hold none of the dataset's queries that have judgements[.]"),
    ):
        with pytest.raises(InputError, match=reason) as caught:
            evaluate(tiny, dataset, candidates)
        assert "The dataset has gaps: corpus.jsonl has 1 empty document, not ranked: e1." in str(caught.value)
    notes = evaluate(tiny, dataset, {"q1": ["d1"], "q3": ["e1"]}).notes
    assert "1 query of 2 with only candidates that cannot be ranked, counted as 0: q3." in notes


def test_a_run_of_another_dataset_is_refused(write, capsys, tmp_path):
    folder = write()
    dataset = Dataset.load(folder)
    with pytest.raises(InputError, match="the run holds none of the dataset's documents, but such as 'x1'"):
        Evaluation.of(dataset, {"q1": {"x1": 1.0, "x2": 2.0}})
    with pytest.raises(InputError, match="theirs ranks none of the dataset's judged queries, but such as 'q9'"):
        Evaluation.of(dataset, {"q9": {"d1": 1.0}}, name="theirs")
    some = Evaluation.of(dataset, {"q1": {"x1": 2.0, "d1": 1.0}}, ["RR"])
    assert some.values["RR"]["q1"] == 0.5
    note = "the corpus lacks 1 of the 2 documents that the run ranks; they keep their places, as not relevant: x1."
    assert some.remarks == (note,)
    assert "so that all count as 0" in Evaluation.of(dataset, {"q1": {}}).remarks[0]
    assert "so that all count as 0" in Evaluation.of(dataset, {}).remarks[0]
    (tmp_path / "other.trec").write_text("q1 Q0 x1 1 1.0 tag\n", encoding="utf-8")
    assert main(["evaluate", str(folder), "--compare", str(tmp_path / "other.trec")]) == 2
    assert "hold" in (error := capsys.readouterr().err)
    assert "none of the dataset's documents, but such as 'x1'" in error
    (tmp_path / "other.trec").write_text("q1 Q0 x1 1 1.0 tag\nq1 Q0 d1 2 0.5 tag\n", encoding="utf-8")
    assert main(["evaluate", str(folder), "--compare", str(tmp_path / "other.trec")]) == 0
    assert note in capsys.readouterr().err


def test_equal_scores_of_both_runs_are_told_apart(nano, write, capsys, tmp_path):
    folder = write([CORPUS[0], {"_id": "d2", "text": CORPUS[0]["text"]}])
    ours = evaluate(nano, Dataset.load(folder)).remarks
    assert ours == ("m0-nano: in 1 query documents of different relevance have equal scores; the later id goes first: q1.",)
    (tmp_path / "other.trec").write_text("q1 Q0 d1 1 1.0 tag\nq1 Q0 d2 2 1.0 tag\n", encoding="utf-8")
    assert main(["evaluate", str(folder), "--compare", str(tmp_path / "other.trec")]) == 0
    error = capsys.readouterr().err
    assert "m0: m0-nano: in 1 query documents" in error
    assert f"m0: {tmp_path / 'other.trec'}: in 1 query documents" in error


def test_where_nothing_can_be_scored_the_gaps_are_said(tiny, write):
    corpus = [*CORPUS, {"_id": "e1"}, {"_id": "p1", "image": "absent.png"}]
    dataset = Dataset.load(write(corpus, qrels=HEADER + "q1\td1\t1\nq1\tgone\t1\n"))
    with pytest.raises(InputError) as caught:
        evaluate(tiny, dataset, {"q1": ["p1"]})
    assert str(caught.value).startswith("nothing could be scored, beginning with p1: ")
    assert str(caught.value).endswith(f"absent.png does not exist. The dataset has gaps: {' '.join(dataset.notes)}")
    assert len(dataset.notes) == 2


# --- numbers and encodings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["1_0", "1_0.5", "1e1_0", "١", "１"])
def test_numbers_that_only_python_takes_are_refused(write, tmp_path, score):
    for lines in (f"q1\td1\t{score}\n", f"{HEADER}q1\td1\t{score}\n", f"q1 0 d1 {score}\n"):
        with pytest.raises(InputError, match=r"line \d: must be query-id, corpus-id and a whole number"):
            Dataset.load(write(qrels=lines))
    (tmp_path / "run.trec").write_text(f"q1 Q0 d1 1 {score} tag\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 1: must be `query Q0 document rank score tag`"):
        read_run(tmp_path / "run.trec")


@pytest.mark.parametrize("score", ["10", "1e1", "+10.0", "10.", "1.0E+1"])
def test_numbers_as_files_hold_them(write, tmp_path, score):
    assert Dataset.load(write(qrels=f"q1\td1\t{score}\n")).qrels == {"q1": {"d1": 10}}
    (tmp_path / "run.trec").write_text(f"q1 Q0 d1 1 {score} tag\n", encoding="utf-8")
    assert read_run(tmp_path / "run.trec") == {"q1": {"d1": 10.0}}


@pytest.mark.parametrize(("mark", "name"), [(mark, name) for mark, name, _ in BYTE_ORDER_MARKS], ids=repr)
def test_byte_order_marks(write, tmp_path, mark, name):
    codec = name if name == "UTF-8" else name + ("-LE" if mark[:1] == b"\xff" else "-BE")
    folder = write()
    for path in (folder / "corpus.jsonl", folder / "qrels" / "test.tsv"):
        path.write_bytes(mark + path.read_text(encoding="utf-8").encode(codec))
    assert Dataset.load(folder).qrels == {"q1": {"d1": 1}}
    broken = mark + "q1\td1\t1\n".encode(codec) + b"\xd8"
    (folder / "qrels" / "test.tsv").write_bytes(broken)
    with pytest.raises(InputError, match=rf"test.tsv is not {name} at byte \d+\.$"):
        Dataset.load(folder)


def test_latin_1_is_named_for_what_it_is_not(write):
    folder = write()
    (folder / "qrels" / "test.tsv").write_bytes(HEADER.encode() + "é\td1\t1\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"test.tsv is not UTF-8 at byte 25\.$"):
        Dataset.load(folder)
