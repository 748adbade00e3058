"""Scores on disk: what is trusted when an evaluation goes on, and what is scored anew."""

import json
import os
from pathlib import Path

import pytest

from m0 import Reranker, SourcePolicy
from m0.cli.main import main
from m0.errors import InputError
from m0.evaluate import Dataset, evaluate, evaluation
from m0.evaluate.picture_hashes import UNKNOWN_HASH, hash_pictures
from tests.conftest import noise

pytest.importorskip("ir_measures")


@pytest.fixture
def folder(tmp_path):
    """Two texts, a picture; a query in words, and one that is a picture."""
    folder = tmp_path / "data"
    (folder / "qrels").mkdir(parents=True)
    noise(70, 60, seed=1).save(folder / "one.png")
    noise(60, 80, seed=2).save(folder / "two.png")
    corpus = [{"_id": "d1", "text": "one"}, {"_id": "d2", "text": "two"}, {"_id": "p1", "image": "one.png"}]
    queries = [{"_id": "q1", "text": "words"}, {"_id": "q2", "image": "two.png"}]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("q1\td1\t1\nq2\tp1\t1\n", encoding="utf-8")
    return folder


@pytest.fixture
def scored(monkeypatch):
    """The pairs that are scored, as they are."""
    seen, original = [], evaluation.score_chunk

    def watched(reranker, dataset, chunk, options, pictures):
        seen.extend((query, document) for document, queries in chunk for query in queries)
        return original(reranker, dataset, chunk, options, pictures)

    monkeypatch.setattr(evaluation, "score_chunk", watched)
    return seen


def near(run):
    """Another batch may change a score's last bit."""
    return {query: pytest.approx(scores, abs=1e-6) for query, scores in run.items()}


def lines_of(out):
    return [json.loads(line) for line in (out / "scores-0.jsonl").read_text(encoding="utf-8").splitlines()]


OF_P1, OF_Q2 = {("q1", "p1"), ("q2", "p1")}, {("q2", "d1"), ("q2", "d2"), ("q2", "p1")}


@pytest.mark.parametrize("name", ["one.png", "two.png"])
def test_a_changed_picture_is_noticed_however_the_path_is_spelled(tiny, folder, tmp_path, monkeypatch, scored, name):
    out = tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    first = evaluate(tiny, Dataset.load("data"), out=out)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    scored.clear()
    assert evaluate(tiny, Dataset.load(folder), out=out).run == first.run
    assert evaluate(tiny, Dataset.load("../data"), out=out).run == first.run
    assert not scored, "unchanged pictures' scores are kept"
    noise(70, 60, seed=9).save(folder / name)
    changed = evaluate(tiny, Dataset.load(folder), out=out)
    assert set(scored) == (OF_P1 if name == "one.png" else OF_Q2)
    assert changed.run == near(evaluate(tiny, Dataset.load(folder)).run)
    assert changed.run != near(first.run)
    noise(70, 60, seed=10).save(folder / name)
    monkeypatch.chdir(tmp_path)
    last = evaluate(tiny, Dataset.load("data"), out=out).run
    assert last == near(evaluate(tiny, Dataset.load("data")).run)
    assert last != near(changed.run)


def test_a_dataset_that_moved_goes_on(tiny, folder, tmp_path, scored):
    first = evaluate(tiny, Dataset.load(folder), out=tmp_path / "out")
    moved = folder.rename(tmp_path / "moved")
    scored.clear()
    assert evaluate(tiny, Dataset.load(moved), out=tmp_path / "out").run == first.run
    assert not scored


@pytest.mark.parametrize("how", ["no hash", "path and hash", "two hashes"])
def test_an_unknown_hash_is_no_proof(tiny, folder, tmp_path, scored, how):
    """As where another version kept pictures by path, or two processes saw different ones."""
    out = tmp_path / "out"
    first = evaluate(tiny, Dataset.load(folder), out=out)
    rows = lines_of(out)
    seen = {row[1]: row[2] for row in rows if row[0] is True}
    assert set(seen) == {"document p1", "query q2"}
    instead = {
        "no hash": [],
        "path and hash": [
            [True, str(folder / "one.png"), seen["document p1"]],
            [True, str(folder / "two.png"), seen["query q2"]],
        ],
        "two hashes": [[True, what, value] for what in seen for value in (seen[what], "0" * 64)],
    }[how]
    rows = [[row[0], row[1], 99.0, *row[3:]] for row in rows if row[0] is not True] + instead
    (out / "scores-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    scored.clear()
    again = evaluate(tiny, Dataset.load(folder), out=out)
    assert set(scored) == OF_P1 | OF_Q2
    expected = {"q1": {"d1": 99.0, "d2": 99.0, "p1": first.run["q1"]["p1"]}, "q2": first.run["q2"]}
    assert again.run == near(expected)
    assert {row[1] for row in lines_of(out) if row[0] is True} == {"document p1", "query q2"}


def test_scores_of_an_earlier_version_stay_and_the_cuts_are_said_to_be_unknown(tiny, folder, tmp_path, scored):
    out = tmp_path / "out"
    evaluate(tiny, Dataset.load(folder), out=out)
    rows = [row[:3] for row in lines_of(out)]
    (out / "scores-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    scored.clear()
    again = evaluate(tiny, Dataset.load(folder), out=out)
    assert not scored
    assert again.notes == ("whether anything was cut is not known of 6 pairs that an earlier version scored.",)


@pytest.mark.parametrize(
    "line",
    [
        '["q1", "d1", "notnumber"]', '["q1", "d1", null]', '["q1", ["d1"], 1.0]', '[true, 5, "x"]', '["q1", "d1", NaN]',
        '["q1", "d1", Infinity]', '["q1", "d1", true]', '["q1", "d1", 1e999]', f'["q1", "d1", {10**400}]', '[null, "d1", 5]',
        '["q1", "d1", 1.0, 5]', '["q1", "d1", 1.0, [5]]', '["q1", "d1", 1.0, [], []]', "[]", "{}", "3", "null", "garbage",
        "[" * 100_000, '"abc"', '[false, "a", "b"]', "[1, 2, 3]", "\udcff",
    ],
    ids=lambda line: ascii(line)[:40],
)  # fmt: skip
def test_a_damaged_line_is_dropped_and_its_pair_scored_again(tiny, folder, tmp_path, scored, line):
    out = tmp_path / "out"
    first = evaluate(tiny, Dataset.load(folder), {"q1": ["d1", "d2"]}, out=out)
    good = [row for row in lines_of(out) if row[1] == "d2"]
    data = "".join(json.dumps(row) + "\n" for row in good).encode() + line.encode(errors="surrogateescape") + b"\n"
    (out / "scores-0.jsonl").write_bytes(data)
    scored.clear()
    with pytest.warns(UserWarning, match=r"scores-0.jsonl has 1 line that is damaged; such pairs are scored again"):
        again = evaluate(tiny, Dataset.load(folder), {"q1": ["d1", "d2"]}, out=out)
    assert scored == [("q1", "d1")]
    assert again.run == near(first.run)
    assert lines_of(out) == [*good, ["q1", "d1", again.run["q1"]["d1"], []]]


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"garbage", b"[]", b"3", b"\xff\xfe", b"[" * 100_000], ids=lambda data: repr(data[:9])
)
def test_a_folder_whose_about_is_damaged(tiny, folder, tmp_path, data):
    out = tmp_path / "out"
    evaluate(tiny, Dataset.load(folder), {"q1": ["d1"]}, out=out)
    kept = (out / "scores-0.jsonl").read_bytes()
    (out / "about.json").write_bytes(data)
    with pytest.raises(InputError, match=r"about.json is damaged, so that nobody can tell"):
        evaluate(tiny, Dataset.load(folder), {"q1": ["d1"]}, out=out)
    (out / "about.json").unlink()
    with pytest.raises(InputError, match=r"holds scores, but not about.json, which says whose"):
        evaluate(tiny, Dataset.load(folder), {"q1": ["d1"]}, out=out)
    assert (out / "scores-0.jsonl").read_bytes() == kept


def test_files_that_are_none_are_named(tiny, folder, tmp_path):
    for name in ("about.json", "scores-0.jsonl"):
        (tmp_path / name[:5] / name).mkdir(parents=True)
        with pytest.raises(InputError, match=f"{name} cannot be read: Is a directory"):
            evaluate(tiny, Dataset.load(folder), {"q1": ["d1"]}, out=tmp_path / name[:5])


def test_an_empty_file_of_scores_is_one_that_was_just_begun(tiny, folder, tmp_path):
    out = tmp_path / "out"
    first = evaluate(tiny, Dataset.load(folder), {"q1": ["d1"]}, out=out)
    (out / "scores-0.jsonl").write_bytes(b"")
    assert evaluate(tiny, Dataset.load(folder), {"q1": ["d1"]}, out=out).run == first.run


def test_what_is_seen(tmp_path):
    noise(30, 30, seed=1).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    same = [
        tmp_path / "a.png",
        {"image": str(tmp_path / "a.png")},
        data,
        [{"text": "x", "image": data}],
        ["x", {"image": data}],
    ]
    assert len({hash_pictures(one) for one in same}) == 1
    assert [hash_pictures(one) for one in ("text", {"text": "a.png"}, ["a", "b"])] == [None] * 3
    with (tmp_path / "a.png").open("rb") as file:
        assert (
            hash_pictures(file)
            == hash_pictures({"image": "absent.png"})
            == hash_pictures([data, {"image": "absent.png"}])
            == UNKNOWN_HASH
        )
    url = {"image": "HTTP://localhost:9/a.png"}
    different = [data, url, noise(30, 30, seed=1), noise(30, 30, seed=2), [data, data], [data, url], [url, data]]
    found = [hash_pictures(one) for one in different]
    assert UNKNOWN_HASH not in found
    assert len(set(found)) == len(found)


def test_what_was_cut_is_said_and_kept(tiny, tmp_path):
    folder = tmp_path / "data"
    (folder / "qrels").mkdir(parents=True)
    pages = [noise(60, 60, seed=i) for i in range(3)]
    pages[0].save(folder / "pages.tiff", save_all=True, append_images=pages[1:])
    corpus = [{"_id": f"d{i}", "text": f"word {i} " * (200 * (i > 0))} for i in range(8)] + [
        {"_id": "p1", "image": "pages.tiff"}
    ]
    corpus[0]["text"] = "short"
    queries = [{"_id": "q1", "text": "few"}, {"_id": "q2", "text": "many " * 100}]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("q1\td0\t1\nq2\td1\t1\n", encoding="utf-8")
    limits = {"max_length": 120, "max_query_length": 30}
    done = evaluate(tiny, Dataset.load(folder), out=tmp_path / "out", **limits)
    assert done.notes == (
        "7 documents were cut to fit: d1, d2, d3, d4, d5 and 2 more.",
        "of 1 document only one page or frame was read: p1 (page 1 of 3).",
        "1 query was cut to fit: q2.",
    )
    counts = {
        "documents": 7,
        "queries": 1,
        "documents_with_unread_pages": 1,
        "queries_with_unread_pages": 0,
        "pairs_not_known": 0,
    }
    assert done.cut == counts
    assert evaluate(tiny, Dataset.load(folder), out=tmp_path / "out", **limits).notes == done.notes
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert (report["notes"], report["cut"]) == (list(done.notes), counts)
    assert evaluate(tiny, Dataset.load(folder), **limits).notes == done.notes
    short = evaluate(tiny, Dataset.load(folder), {"q1": ["d0"]}, **limits)
    assert not any(short.cut.values())
    assert not any("cut" in note for note in short.notes)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tiny, folder, tmp_path):
    evaluate(tiny, Dataset.load(folder), {"q1": ["d1"]}, out=tmp_path / "out")
    (tmp_path / "out" / "scores-0.jsonl").chmod(0)
    with pytest.raises(InputError, match=r"scores-0.jsonl cannot be read: Permission denied"):
        evaluate(tiny, Dataset.load(folder), {"q1": ["d1"]}, out=tmp_path / "out")


# --- where pictures may come from ---------------------------------------------------------------------------------------


def test_no_file_is_hashed_that_the_policy_does_not_allow(folder, tmp_path, monkeypatch):
    (tmp_path / "allowed").mkdir()
    inside, outside = tmp_path / "allowed" / "in.png", tmp_path / "out.png"
    for path in (inside, outside):
        noise(60, 60).save(path)
    policy = SourcePolicy(root=tmp_path / "allowed", data=False)
    assert hash_pictures({"image": str(inside)}, policy) == hash_pictures({"image": str(inside)}) != UNKNOWN_HASH
    assert hash_pictures({"image": str(outside)}) != UNKNOWN_HASH
    opened = []
    original = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *more: opened.append(path) or original(path, *more))
    assert hash_pictures({"image": str(outside)}, policy) == UNKNOWN_HASH
    assert hash_pictures([{"image": inside}, {"image": outside}], policy) == UNKNOWN_HASH
    assert hash_pictures({"image": b"bytes"}, policy) == UNKNOWN_HASH
    assert outside not in opened


def test_an_evaluation_keeps_to_the_policy(tiny_directory, folder, tmp_path, scored):
    (tmp_path / "elsewhere").mkdir()
    strict = Reranker.from_pretrained(tiny_directory, dtype="float32", policy=SourcePolicy(root=tmp_path / "elsewhere"))
    done = evaluate(strict, Dataset.load(folder), out=tmp_path / "out")
    why = "is not read: the policy allows no path there."
    assert done.failed == {"p1": f"{folder / 'one.png'} {why}", "query q2": f"{folder / 'two.png'} {why}"}
    assert done.run == {"q1": {"d1": pytest.approx(done.run["q1"]["d1"]), "d2": done.run["q1"]["d2"]}, "q2": {}}
    assert not [row for row in lines_of(tmp_path / "out") if row[0] is True], "what may not be read has no hash"
    free = Reranker.from_pretrained(tiny_directory, dtype="float32")
    assert evaluate(free, Dataset.load(folder), out=tmp_path / "out").failed == {}


def test_the_command_line_takes_a_policy(tiny_directory, folder, tmp_path, capsys):
    arguments = ["evaluate", str(folder), "--model", str(tiny_directory), "--dtype", "float32", "--json"]
    (folder / "pages").mkdir()
    (folder / "one.png").rename(tmp_path / "one.png")
    (folder / "one.png").symlink_to(tmp_path / "one.png")
    assert main([*arguments, "--root", str(folder)]) == 1
    failed = json.loads(capsys.readouterr().out)["failed"]
    assert failed == {"p1": f"{folder / 'one.png'} is not read: the policy allows no path there."}
    assert main([*arguments, "--root", str(folder / "pages")]) == 2
    assert capsys.readouterr().err == f"m0: {folder / 'corpus.jsonl'} is not read: the policy allows no path there.\n"
    assert main([*arguments, "--winoground", "--root", str(folder / "pages")]) == 2
    assert capsys.readouterr().err == f"m0: {folder / 'examples.jsonl'} is not read: the policy allows no path there.\n"
    (folder / "corpus.jsonl").write_text(
        '{"_id": "d1", "text": "one"}\n{"_id": "p1", "image": "http://127.0.0.1:9/x.png"}\n', encoding="utf-8"
    )
    for option, why in (
        (["--no-urls"], "is not fetched: the policy allows no addresses."),
        (["--allow-host", "example.org"], "is not fetched: the policy does not allow its host."),
        (["--no-private-addresses"], "cannot be fetched: its host has no address, or none that is public."),
    ):
        assert main([*arguments, *option]) == 1
        assert json.loads(capsys.readouterr().out)["failed"] == {"p1": f"http://127.0.0.1:9/x.png {why}"}
