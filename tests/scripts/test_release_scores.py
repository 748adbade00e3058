"""scripts/verify_release.py: what the published figures say, what passes, and that it runs to its end."""

import importlib.util
import json
import math
import struct
import sys
from pathlib import Path

import pytest

from tests.conftest import noise

SCRIPT = Path(__file__).parents[2] / "scripts" / "verify_release.py"
PRINTED = {
    "text to text": (0.6839, 0.4432, 0.5904, 0.4548),
    "text to picture": (0.4938, 0.7890, 0.4781, 0.5211),
    "picture to text": (0.9810, 0.7702, 0.5637, 0.9309),
    "picture to picture": (0.6276, 0.9922, 0.8090, 0.7941),
}


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("verify_release", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules["verify_release"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    yield module
    del sys.modules["verify_release"]


def neighbour(value, steps):
    """The bfloat16 number so many steps above, by its bits."""
    (bits,) = struct.unpack(">I", struct.pack(">f", value))
    assert bits & 0xFFFF == 0, "not a bfloat16 number"
    return struct.unpack(">f", struct.pack(">I", bits + steps * 0x10000))[0]


def sigmoid(logit):
    return 1 / (1 + math.exp(2.65 - logit))


def test_the_logits_are_the_printed_scores_and_no_neighbours(script):
    """Each is a bfloat16 number that gives the published score to four places, and neither of its neighbours does."""
    for case in script.CASES:
        for logit, printed in zip(case.logits, PRINTED[case.name], strict=True):
            assert round(sigmoid(logit), 4) == printed
            assert all(round(sigmoid(neighbour(logit, steps)), 4) != printed for steps in (-1, 1))


def test_a_step_of_bfloat16(script):
    for value in (2.421875, 3.96875, 4.09375, 5.25, 7.5, 0.5):
        assert script.bfloat16_step(value) == neighbour(value, 1) - value
    assert script.bfloat16_step(3.0) == 1 / 64
    assert script.bfloat16_step(4.0) == 1 / 32


@pytest.mark.parametrize(("name", "allowed"), [(name, 1 if name == "text to text" else 4) for name in PRINTED])
@pytest.mark.parametrize("sign", [-1, 1])
def test_so_many_steps_pass_and_one_more_does_not(script, name, allowed, sign):
    (case,) = (case for case in script.CASES if case.name == name)
    for number in range(4):
        for steps in (0, allowed, allowed + 1):
            logits = list(case.logits)
            logits[number] += sign * steps * script.bfloat16_step(logits[number])
            passed = [one.passed for one in script.compare_logits(case, logits)]
            assert passed == [steps <= allowed or other != number for other in range(4)]


def test_relevances_of_the_second_table(script):
    for case in script.CASES:
        assert all(one.passed for one in script.compare_relevances(case, case.relevances))
        assert all(one.passed for one in script.compare_relevances(case, list(map(sigmoid, case.logits)))), "the first table's"
        off = [value - 0.021 for value in case.relevances]
        assert not any(one.passed for one in script.compare_relevances(case, off))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_number_does_not_pass(script, bad):
    case = script.CASES[0]
    assert not any(one.passed for one in script.compare_logits(case, [bad] * 4))
    assert not any(one.passed for one in script.compare_relevances(case, [bad] * 4))


class Made:
    """As much of a reranker as the script asks for, with made-up logits."""

    class model:
        class config:
            logit_bias = 2.65

    def __init__(self, logits):
        self.answers = iter(logits)

    def logits(self, pairs, max_length):
        assert len(pairs) == 4
        return next(self.answers)


@pytest.mark.parametrize(("off", "outside"), [(0, 0), (1, 0), (2, 1)])
def test_the_count_of_what_is_outside(script, off, outside, capsys):
    answers = [list(case.logits) for case in script.CASES]
    answers[0][1] += off / 64
    documents = {"texts": ["a", "b", "c", "d"], "pictures": ["1", "2", "3", "4"]}
    assert script.verify(Made(answers), documents) == (32, outside, 0)
    assert capsys.readouterr().out.count("OUTSIDE") == outside


def test_texts_alone(script, capsys):
    assert script.verify(Made([script.CASES[0].logits]), {"texts": ["a", "b", "c", "d"], "pictures": None}) == (8, 0, 0)
    assert capsys.readouterr().out.count("left out: no pictures given") == 3


@pytest.fixture(scope="module")
def made_up(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made-up")
    texts = ["Tables become Markdown.", "A line on something else.", "Gold was found in the hills.", "Ein Absatz auf Deutsch."]
    (folder / "texts.json").write_text(json.dumps(texts))
    for number, name in enumerate(script.PICTURES):
        noise(150 + 40 * number, 120, seed=number).save(folder / name)
    return folder


def test_the_script_runs_to_its_end_and_another_model_fails(script, made_up, capsys):
    arguments = ["--model", "m0-nano", "--texts", str(made_up / "texts.json"), "--pictures", str(made_up)]
    assert script.main(arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if " logit " in line or " relevance " in line]) == 16 + 16 + 8
    assert any("OUTSIDE" in line for line in lines)
    assert "of 32 numbers are within the bounds: 1 step of bfloat16" in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Nothing to compare"),
        (["--texts", "no-such-file.json"], "no-such-file.json cannot be read"),
        (["--pictures", "no-such-folder"], "no-such-folder lacks handelsblatt-preview.png"),
        (["--texts", str(SCRIPT)], "cannot be read"),
        (["--texts", "~/no-such-file.json"], f"{Path.home()}/no-such-file.json cannot be read"),
        (["--pictures", "~/no-such-folder"], f"{Path.home()}/no-such-folder lacks"),
        (["--texts", "~nobody-of-that-name/x.json"], "whom this machine does not know"),
    ],
)
def test_what_it_cannot_compare(script, arguments, message, capsys):
    assert script.main(["--model", "m0-nano", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_leading_tilde_is_the_home_directory(script, made_up, monkeypatch):
    monkeypatch.setenv("HOME", str(made_up))
    assert len(script.read_texts("~/texts.json")) == 4
    assert [part["image"] for part in script.find_pictures("~")] == [made_up / name for name in script.PICTURES]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", "", "c", "d"], "text 2 cannot be scored: the document is empty."),
        (["a", "b", "c", " \n"], "text 4 cannot be scored: the document is empty."),
        (["\ud800", "b", "c", "d"], "text 1 cannot be scored: the document's text is not valid Unicode"),
        (["a", "b", "c"], "must hold a JSON list of four strings"),
        (["a", "b", "c", None], "must hold a JSON list of four strings"),
    ],
)
def test_texts_that_cannot_be_scored_are_refused_before_the_table(script, tmp_path, texts, message, capsys):
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    assert script.main(["--model", "m0-nano", "--texts", str(tmp_path / "texts.json")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"{tmp_path / 'texts.json'}" in captured.err
    assert message in captured.err


def test_texts_with_a_byte_order_mark(script, tmp_path):
    (tmp_path / "texts.json").write_text('\ufeff["a", "b", "c", "d"]', encoding="utf-8")
    assert script.read_texts(tmp_path / "texts.json") == ["a", "b", "c", "d"]


@pytest.mark.parametrize(("number", "left_out"), [(0, 2), (1, 3), (3, 2)])
def test_a_broken_picture_costs_its_cases_alone(script, made_up, tmp_path, capsys, number, left_out):
    """The second is the query of two cases."""
    for name in (*script.PICTURES, "texts.json"):
        (tmp_path / name).write_bytes((made_up / name).read_bytes())
    (tmp_path / script.PICTURES[number]).write_bytes(b"none")
    arguments = ["--model", "m0-nano", "--texts", str(tmp_path / "texts.json"), "--pictures", str(tmp_path)]
    assert script.main(arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    named = [line for line in lines if "left out: " in line]
    assert len(named) == left_out + 1, "the hosted case, too"
    assert all(script.PICTURES[number] in line and "is not a picture that Pillow can open" in line for line in named)
    assert len([line for line in lines if " logit " in line or " relevance " in line]) == 8 * (4 - left_out)
    assert lines[-1] == f"{left_out} cases could not be scored."
    assert f"of {8 * (4 - left_out)} numbers" in lines[-2]


def test_a_broken_picture_fails_even_where_all_numbers_pass(script, made_up, tmp_path, monkeypatch, capsys):
    class Partly(Made):
        def logits(self, pairs, max_length):
            if isinstance(pairs[0][1], dict):
                raise script.M0Error("a picture is broken.")
            return super().logits(pairs, max_length)

        def rank(self, *_):
            raise script.M0Error("a picture is broken.")

    made = Partly([script.CASES[0].logits, script.CASES[2].logits])
    monkeypatch.setattr(script.Reranker, "from_pretrained", lambda *_, **__: made)
    assert script.main(["--texts", str(made_up / "texts.json"), "--pictures", str(made_up)]) == 1
    assert "OUTSIDE" not in (output := capsys.readouterr()).out + output.err
    made = Partly([])
    assert script.main(["--pictures", str(made_up)]) == 2
    assert "Nothing could be compared." in capsys.readouterr().err
