"""A training config: every key is checked, every mistake gets a sentence."""

import pytest

from m0.errors import ConfigError
from m0.train import TrainConfig

GOOD = """
data = "train.jsonl"
output = "run"

[lora]
r = 8
target_modules = ["q_proj"]

[[stage]]
train = "lora"
learning_rate = 1
loss = { listnet = 1, bce = 0.5 }
"""


def load(tmp_path, text):
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    return TrainConfig.load(path)


def test_paths_start_at_the_file(tmp_path):
    config = load(tmp_path, GOOD)
    assert config.data == (str(tmp_path / "train.jsonl"),)
    assert config.output == str(tmp_path / "run")
    assert config.lora.target_modules == ("q_proj",)
    assert config.stages[0].loss == {"listnet": 1.0, "bce": 0.5}
    assert isinstance(config.stages[0].learning_rate, float)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('output = "run"', "", "output is missing"),
        ("[lora]", "[lroa]", "there is no setting 'lroa'"),
        ("r = 8", "rank = 8", "lora: there is no setting 'rank'"),
        ("r = 8", "r = 0", "the rank r is 0"),
        ("r = 8", "r = true", "lora: r is True, but must be int"),
        ('train = "lora"', "", "stage 1: train is missing"),
        ('train = "lora"', 'train = "vision"', "stage 1: train is 'vision', but must be one of 'lora', 'head', 'all'"),
        ("listnet = 1", "lisnet = 1", "there is no loss 'lisnet'"),
        ("listnet = 1", "listnet = -1", "weight above 0"),
        ("learning_rate = 1", "learning_rate = 0", "learning_rate is 0.0"),
        ("learning_rate = 1", 'learning_rate = "fast"', "learning_rate is 'fast', but must be float"),
        ("learning_rate = 1", "queries_per_step = 10\nqueries_per_pass = 4", "must be a multiple of queries_per_pass, 4"),
        ("learning_rate = 1", "betas = [0.9]", "betas must hold 2 values"),
        ("learning_rate = 1", "warmup = 2", "warmup is 2.0, but must lie between"),
        ("bce = 0.5 }", "kl = 0.5 }\nin_batch_negatives = true", "a teacher has no scores"),
        ("[[stage]]", '[[stage]]\ntrain = "all"\n[[stage]]', "choose one"),
        ('output = "run"', 'output = "run"\ndtype = "int8"', "dtype is 'int8'"),
        ('output = "run"', 'output = "run"\ndata = 3', "is not TOML"),
        ('data = "train.jsonl"', "data = 3", "data is 3"),
        ("[[stage]]", "[stage]", "must be written [[stage]]"),
    ],
)
def test_mistakes(tmp_path, old, new, reason):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace(old, new, 1))
    assert reason in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "config.toml"))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        TrainConfig.load(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="there is no \\[\\[stage\\]\\]"):
        load(tmp_path, 'data = "a"\noutput = "b"')
    with pytest.raises(ConfigError, match="is not a path"):
        TrainConfig.load("a\0b.toml")
    with pytest.raises(ConfigError, match="the settings are NoneType"):
        TrainConfig.of(None)
    assert load(tmp_path, "\ufeff" + GOOD) == load(tmp_path, GOOD)  # as some editors begin a file


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"seed": 10**30}, "seed is"),
        ({"stages": 5}, "stages"),
        ({"max_length": 0}, "max_length is 0"),
        ({"lora": {"target_modules": "("}}, "lora: "),
        ({"lora": {"rank_pattern": {"q_proj": 0}}}, "rank_pattern"),
        ({"lora": {"modules_to_save": ["xyz"]}}, "modules_to_save"),
        ({"lora": {"lora_bias": True}}, "lora_bias"),
        ({"lora": {"bias": "all"}}, "not trained"),
        ({"stage": [{"train": "lora", "betas": [1.5, 0.9]}]}, "betas"),
        ({"stage": [{"train": "lora", "learning_rate": float("nan")}]}, "learning_rate is nan"),
        ({"stage": [{"train": "lora", "clip": float("nan")}]}, "clip is nan"),
        ({"stage": [{"train": "lora", "loss": {"bce": float("inf")}}]}, "finite weight"),
    ],
)
def test_values_that_make_no_sense_are_refused_before_the_run(changes, reason):
    with pytest.raises(ConfigError, match=reason):
        TrainConfig.of({"data": ["a.jsonl"], "output": "run", "stage": [{"train": "lora"}], **changes})
