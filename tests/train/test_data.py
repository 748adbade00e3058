"""Training data: every line is checked; the order is shuffled, bucketed, and the same for the same seed."""

import json
import random

import pytest

from m0.errors import InputError
from m0.train.data import Example, Examples, draw_candidates, parse_line

GOOD = {"query": "q", "positive": ["a"], "negative": ["b"]}


def write(path, lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not a line of JSON"),
        ([1], "holds a JSON list"),
        ({"positive": ["a"]}, 'lacks "query"'),
        ({"query": "q"}, '"positive" is missing'),
        ({"query": "q", "positive": []}, '"positive" is empty'),
        ({"query": " ", "positive": ["a"]}, '"query" is empty'),
        ({**GOOD, "negative": "b"}, '"negative" is str'),
        ({**GOOD, "extra": 1}, "has the key 'extra'"),
        ({**GOOD, "scores": [1.0]}, '"scores" must be a list of 2 numbers'),
        ({**GOOD, "scores": [1.0, "x"]}, "\"scores\" holds 'x'"),
        ({**GOOD, "scores": [1.0, True]}, '"scores" holds True'),
        ({**GOOD, "grades": [0]}, "between 1 and 30"),
        ({**GOOD, "grades": [200]}, "between 1 and 30"),
        ('{"query": "\\ud800", "positive": ["a"]}', "a lone surrogate"),
        ('{"query": {"text": " "}, "positive": ["a"]}', '"query" is empty'),
        ("[" * 200_000, "not a line of JSON"),
        ('{"query": "q", "positive": ["a"], "scores": [1' + "0" * 400 + "]}", '"scores" holds 1000'),
        ({"query": "q", "positive": [{"image": "x" * 300}]}, "does not exist"),
        ({**GOOD, "grades": [1.5]}, "must hold whole numbers"),
        ({"query": "q", "positive": [{"image": "absent.png"}]}, 'absent.png of "positive" does not exist'),
        ({"query": "q", "positive": [3]}, '"positive" must hold text'),
        ({"query": "q", "positive": [[]]}, '"positive" must hold text'),
    ],
)
def test_bad_lines(tmp_path, line, reason):
    path = write(tmp_path / "train.jsonl", [GOOD, line if isinstance(line, str) else json.dumps(line), "\n", GOOD])
    with pytest.raises(InputError) as caught:
        Examples([path])
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert reason in str(caught.value)
    examples = Examples([path], on_bad_line="skip")
    assert len(examples) == 2
    assert [reason in sentence for sentence in examples.bad] == [True]


def test_lines_stay_on_disk(tmp_path, colours):
    examples = Examples([colours / "train.jsonl", write(tmp_path / "b.jsonl", [GOOD, "\n", {**GOOD, "query": "last"}])])
    assert len(examples) == 18
    assert examples[17] == Example("last", ("a",), ("b",))
    assert examples[0].positive[0]["image"] == str(colours / "red.png")
    assert not examples.bad


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        Examples([tmp_path / "absent.jsonl"])
    with pytest.raises(InputError, match="holds no line"):
        Examples([write(tmp_path / "empty.jsonl", ["\n"])])


def test_the_order(tmp_path):
    lines = [{**GOOD, "query": "q" * (1 + i % 50)} for i in range(1000)]
    examples = Examples([write(tmp_path / "train.jsonl", lines)])
    steps = examples.steps(8, epoch=0, seed=1)
    assert sorted(i for step in steps for i in step) == list(range(1000))
    assert steps == examples.steps(8, epoch=0, seed=1)
    assert steps != examples.steps(8, epoch=1, seed=1)
    assert steps != examples.steps(8, epoch=0, seed=2)
    spread = [max(examples.lengths[step]) - min(examples.lengths[step]) for step in steps]
    assert sum(spread) / len(spread) < 8, "like lengths go together"
    firsts = [examples.lengths[step[0]] for step in steps]
    assert firsts != sorted(firsts), "but steps come in any order"


def test_the_last_step_is_filled_up(tmp_path):
    examples = Examples([write(tmp_path / "train.jsonl", [GOOD] * 5)])
    assert [len(step) for step in examples.steps(4, 0, 1)] == [4, 4]
    assert [len(step) for step in examples.steps(8, 0, 1)] == [8]


def test_candidates():
    example = parse_line(
        json.dumps({"query": "q", "positive": ["a", "b"], "negative": ["c", "d", "e"], "grades": [2, 1]}), None
    )
    seen = set()
    for seed in range(50):
        one = draw_candidates(example, 1, 2, random.Random(seed), borrowed=["f", "a", "c"])
        assert sorted(one.labels) in ([0.0] * (len(one.labels) - 1) + [grade] for grade in (1.0, 2.0))
        assert len(set(one.documents)) == len(one.documents), "a borrowed document that is there already is not added"
        again = draw_candidates(example, 1, 2, random.Random(seed), borrowed=["q", "f", "a", "c"])
        assert again.documents == one.documents, "nor is the query itself, which may be another query's positive"
        assert {"a": 2.0, "b": 1.0}[one.documents[one.labels.index(max(one.labels))]] == max(one.labels)
        seen.add(tuple(one.documents))
    assert len(seen) > 20, "drawn and shuffled"


def test_scores_stay_with_their_documents():
    example = parse_line(json.dumps({"query": "q", "positive": ["a"], "negative": ["b", "c"], "scores": [3, 2, 1]}), None)
    one = draw_candidates(example, 1, 2, random.Random(1))
    assert dict(zip(one.documents, one.scores, strict=True)) == {"a": 3, "b": 2, "c": 1}
