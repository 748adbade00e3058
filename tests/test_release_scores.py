"""scripts/verify_release.py: what the published figures say, what passes, and that it runs to its end."""

import importlib.util
import json
import math
import struct
import sys
from pathlib import Path

import pytest

from tests.conftest import noise

SCRIPT = Path(__file__).parent.parent / "scripts" / "verify_release.py"
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
    assert script.verify(Made(answers), documents) == (32, outside)
    assert capsys.readouterr().out.count("OUTSIDE") == outside


def test_texts_alone(script, capsys):
    assert script.verify(Made([script.CASES[0].logits]), {"texts": ["a", "b", "c", "d"], "pictures": None}) == (8, 0)
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
    ],
)
def test_what_it_cannot_compare(script, arguments, message, capsys):
    assert script.main(["--model", "m0-nano", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
