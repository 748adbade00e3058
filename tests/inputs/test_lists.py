"""Documents and pairs in whatever people keep them in."""

import collections
import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from m0.errors import InputError
from m0.evaluate import Dataset, evaluate
from m0.inputs.lists import to_list, to_pairs
from tests.conftest import noise

WORDS = ["ein rotes Herz", "zwei Hunde", "a needle"]
PAIRS = [("q", "one"), ("two", "three"), ("q", "four words of it")]


class Series:
    """As pandas has it: read by label, iterated by place."""

    def __init__(self, values, labels):
        self.values, self.labels = list(values), list(labels)

    def __len__(self):
        return len(self.values)

    def __iter__(self):
        return iter(self.values)

    def __getitem__(self, label):
        return self.values[self.labels.index(label)]

    def __bool__(self):
        raise ValueError("the truth value of a Series is ambiguous")


class Table:
    """As pandas has it: iterating gives the columns' names."""

    columns = ("text", "label")

    def __iter__(self):
        return iter(self.columns)

    def __len__(self):
        return 3


class Endless:
    """A dataset by number that never says that it has ended."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, place):
        return self.values[place % len(self.values)]


class Ours(torch.utils.data.Dataset):
    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, place):
        return self.values[place]


class Arrow:
    def to_pylist(self):
        return list(WORDS)


CONTAINERS = {
    "list": lambda values: values,
    "tuple": tuple,
    "Series": lambda values: Series(values, [2, 0, 1]),
    "array of objects": lambda values: np.array(values, dtype=object),
    "generator": lambda values: (value for value in values),
    "iterator": iter,
    "map": lambda values: map(str, values),
    "chain": lambda values: itertools.chain(values[:1], values[1:]),
    "dict values": lambda values: dict(enumerate(values)).values(),
    "dict keys": lambda values: dict.fromkeys(values).keys(),
    "deque": collections.deque,
    "UserList": collections.UserList,
    "dataset": Ours,
    "endless dataset": Endless,
}


@pytest.mark.parametrize("name", [*CONTAINERS, "array of text", "Arrow"])
def test_documents_in_anything_that_has_an_order(tiny, name):
    others = {"array of text": lambda: np.array(WORDS), "Arrow": Arrow}
    given = others[name]() if name in others else CONTAINERS[name](WORDS)
    expected = tiny.rank("two dogs", WORDS)
    ranking = tiny.rank("two dogs", given)
    assert [(result.index, result.logit) for result in ranking] == [(result.index, result.logit) for result in expected]
    assert all(result.document == WORDS[result.index] for result in ranking)


def test_a_set_is_ranked_in_its_own_order(tiny):
    given = set(WORDS)
    ranking = tiny.rank("two dogs", given)
    assert [result.document for result in ranking] == [result.document for result in tiny.rank("two dogs", WORDS)]
    assert all(list(given)[result.index] == result.document for result in ranking)


def test_what_was_given_comes_back(tiny):
    picture, part = noise(60, 60), {"text": "words"}
    given = Series([picture, part, ["a", picture], None], [3, 2, 1, 0])
    ranking = tiny.rank("q", given, on_error="skip")
    assert all(result.document is given.values[result.index] for result in ranking)
    assert ranking.failed[0].document is None
    with pytest.raises(InputError, match=r"^document 3: "):
        tiny.rank("q", given)


def test_an_iterator_is_read_once(tiny):
    taken = []

    def documents():
        for word in WORDS:
            taken.append(word)
            yield word

    assert len(tiny.rank("q", documents())) == 3
    assert taken == WORDS
    with pytest.raises(InputError, match="the list of documents is empty"):
        tiny.rank("q", iter(()))
    with pytest.raises(KeyError, match="mine"):  # an error of the user's own is the user's
        tiny.rank("q", (collections.ChainMap()["mine"] for _ in range(2)))


def test_pictures_in_an_array_of_objects(tiny):
    pictures = [np.asarray(noise(60, 60, number)) for number in range(2)]
    objects = np.empty(2, dtype=object)
    objects[:] = pictures
    assert [r.logit for r in tiny.rank("q", objects)] == [r.logit for r in tiny.rank("q", pictures)]


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        (None, "documents is NoneType, but must be a list or another iterable."),
        (5, "documents is int, but must"),
        (object(), "documents is object, but must"),
        ("words", "documents is str, but must be a list or another iterable; a single one is given as a list of one."),
        (np.str_("words"), "documents is str_, but must"),
        (b"words", "documents is bytes, but must"),
        (collections.UserString("words"), "documents is UserString, but must"),
        (Path("x.png"), "documents is PosixPath, but must"),
        (io.BytesIO(b"a\nb"), "documents is BytesIO, but must"),
        (io.StringIO("a\nb"), "documents is StringIO, but must"),
        ({"text": "a"}, "documents is dict, but must be a list or another iterable, such as the mapping's values()"),
        (collections.OrderedDict(a="b"), "documents is OrderedDict, but must"),
        (
            Table(),
            "documents is Table, but must be a list or another iterable, such as one column of that table.",
        ),
        (
            np.zeros((2, 60, 60, 3), np.uint8),
            "documents is an array of uint8 of shape (2, 60, 60, 3), which may be one picture or",
        ),
        (np.zeros((60, 60), np.uint8), "documents is an array of uint8 of shape (60, 60)"),
        (np.zeros(3), "documents is an array of float64 of shape (3,)"),
        (np.array("words"), "documents is an array of shape ()"),
        (np.array([["a", "b"]]), "documents is an array of shape (1, 2), but must have one dimension."),
        (noise(60, 60), "documents is Image, but must"),
    ],
)
def test_what_is_not_many_says_what_to_give(tiny, tmp_path, documents, words):
    calls = (
        lambda: tiny.rank("q", documents),
        lambda: tiny.prepare(documents),
        lambda: tiny.explain_ranking("q", documents, tmp_path / "x.html"),
    )
    for call in calls:
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value).startswith(words)
        assert "\n" not in str(caught.value)


def test_prepare_and_pages(tiny_directory, tmp_path):
    from m0 import Reranker

    reranker = Reranker.from_pretrained(tiny_directory, dtype="float32")
    assert reranker.prepare(word * 30 for word in WORDS) == 3
    assert reranker.prepare(Series([word * 30 for word in WORDS], "abc")) == 0
    names = (name for name in "xyz")
    ranking = reranker.explain_ranking("q", iter(WORDS), tmp_path / "x.html", names=names)
    assert len(ranking) == 3
    page = (tmp_path / "x.html").read_text()
    assert all(f". {name}" in page for name in "xyz")


@pytest.mark.parametrize(
    "given",
    [
        PAIRS,
        tuple(PAIRS),
        [list(pair) for pair in PAIRS],
        np.array(PAIRS),
        np.array(PAIRS, dtype=object),
        [np.array(pair) for pair in PAIRS],
        Series(PAIRS, "abc"),
        [Series(pair, "xy") for pair in PAIRS],
        collections.deque(collections.deque(pair) for pair in PAIRS),
    ],
    ids=lambda given: type(given).__name__,
)
def test_pairs_in_anything_that_has_an_order(tiny, given):
    expected = tiny.logits(PAIRS)
    assert tiny.logits(given) == expected
    assert tiny.score(given) == tiny.score(PAIRS)
    assert tiny.compute_score(given) == pytest.approx(tiny.score(PAIRS), abs=1e-6)


def test_pairs_that_come_one_by_one(tiny):
    queries, documents = zip(*PAIRS, strict=True)
    expected = tiny.logits(PAIRS)
    assert tiny.logits(zip(queries, documents, strict=True)) == expected
    assert tiny.logits(pair for pair in PAIRS) == expected
    assert tiny.logits(map(iter, PAIRS)) == expected
    assert tiny.logits(dict(PAIRS[:2]).items()) == tiny.logits(PAIRS[:2])
    scores = tiny.compute_score(zip(queries, documents, strict=True), normalize_scores=False)
    assert scores == pytest.approx(expected, abs=1e-6)


def test_one_pair_and_two_pairs_are_told_apart(tiny):
    """The vendor's call takes a single pair, too, and gives one number for it."""
    first, second = tiny.score([("a", "b"), ("c", "d")])
    two = [
        [["a", "b"], ["c", "d"]],
        np.array([["a", "b"], ["c", "d"]]),
        zip("ac", "bd", strict=True),
        map(iter, [("a", "b"), ("c", "d")]),
        [Series("ab", "xy"), Series("cd", "xy")],
        [np.array(["a", "b"]), ("c", "d")],
    ]
    for pairs in two:
        assert tiny.compute_score(pairs) == pytest.approx([first, second], abs=1e-6)
    for pair in (["a", "b"], ("a", "b"), np.array(["a", "b"]), iter(["a", "b"])):
        assert tiny.compute_score(pair) == pytest.approx(first, abs=1e-6)
    picture = np.asarray(noise(60, 60))
    assert tiny.compute_score([picture, "words"]) == pytest.approx(tiny.score([(picture, "words")])[0], abs=1e-6)
    assert tiny.compute_score([picture, picture]) == pytest.approx(tiny.score([(picture, picture)])[0], abs=1e-6)


@pytest.mark.parametrize(
    "pairs",
    [
        {"a": "b"},
        {"a": "b"}.keys(),
        [{"a": "b"}],
        [{"a", "b"}],
        ["ab", "cd"],
        [b"ab"],
        [5],
        [("a",)],
        [("a", "b", "c")],
        [np.zeros((2, 56, 56, 3), np.uint8)],
        np.zeros((3, 2)),
        np.array([["a", "b", "c"]]),
        Table(),
        io.StringIO("a"),
        iter(()),
    ],
    ids=lambda pairs: type(pairs[0] if isinstance(pairs, list) else pairs).__name__,
)
def test_what_is_no_list_of_pairs(tiny, pairs):
    with pytest.raises(InputError, match="pair") as caught:
        tiny.score(pairs)
    assert "\n" not in str(caught.value)


def test_a_mapping_of_pairs_says_items():
    with pytest.raises(InputError, match=r"such as its items\(\)"):
        to_pairs({"q": "d"})
    assert to_list(range(3)) == [0, 1, 2]


def test_examples_for_quantizing(tiny_directory):
    from m0 import Reranker
    from m0.engine.quantize import has_kernels

    if not has_kernels():
        pytest.skip("no kernels for 8 bits here")
    quantized = []
    for examples in (PAIRS, iter(PAIRS)):
        reranker = Reranker.from_pretrained(tiny_directory, dtype="float32")
        reranker.quantize(examples=examples)
        quantized.append(reranker.logits(PAIRS))
    assert quantized[0] == quantized[1]


def test_candidates_of_an_evaluation(tiny, tmp_path):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text(
        "".join(f'{{"_id": "{name}", "text": "the {name}"}}\n' for name in ("d1", "d2", "d3"))
    )
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "words"}\n')
    (tmp_path / "qrels" / "test.tsv").write_text("q\td1\t1\n")
    dataset = Dataset.load(tmp_path)

    def run(candidates):
        return evaluate(tiny, dataset, candidates, measures=["RR"]).run

    expected = run({"q": ["d1", "d2"]})
    for ids in (("d1", "d2"), iter(["d1", "d2"]), np.array(["d1", "d2"]), Series(["d1", "d2"], [1, 0]), {"d1": 2.0, "d2": 1.0}):
        assert run({"q": ids}) == expected
    for candidates, words in (
        ({"q": "d1"}, "the candidates of q is str, but must be a list"),
        ({"q": None}, "the candidates of q is NoneType"),
        ({"q": [["d1", 1.0]]}, "but must hold ids, which are text"),
        (["d1"], "candidates is list, but must map queries to documents"),
    ):
        with pytest.raises(InputError, match=words):
            run(candidates)
