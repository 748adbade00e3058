"""Small training material: colours by name and by picture."""

import json
from pathlib import Path

import pytest
from PIL import Image

COLOURS = {
    "red": (220, 20, 20),
    "green": (20, 160, 20),
    "blue": (20, 20, 220),
    "yellow": (240, 230, 20),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "orange": (250, 140, 10),
    "purple": (130, 20, 140),
}


@pytest.fixture(scope="session")
def colours(tmp_path_factory) -> Path:
    """train.jsonl and dev.jsonl: a colour's name, pictures and sentences as documents."""
    folder = tmp_path_factory.mktemp("colours")
    lines = []
    for name, colour in COLOURS.items():
        Image.new("RGB", (56, 56), colour).save(folder / f"{name}.png")
    for number, name in enumerate(COLOURS):
        others = [other for other in COLOURS if other != name]
        good = [{"image": f"{name}.png"}, f"a sheet of {name} paper"]
        bad = [{"image": f"{other}.png"} for other in others[:4]] + [f"a sheet of {other} paper" for other in others]
        scores = [1.0, 0.5] + [-0.1 * i for i in range(len(bad))]
        lines.append({"query": f"{name}, please" * (1 + number % 3), "positive": good, "negative": bad, "scores": scores})
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines * 2), encoding="utf-8")
    (folder / "dev.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:3]), encoding="utf-8")
    return folder


@pytest.fixture
def configured(colours, tiny_directory, tmp_path):
    """A config of a short run, with changes."""
    from m0.train import TrainConfig

    def make(stages=({"train": "lora"},), output="run", **changes) -> TrainConfig:
        common = {"epochs": 1, "queries_per_step": 4, "queries_per_pass": 2, "negatives": 3, "learning_rate": 1e-3}
        values = {
            "model": str(tiny_directory),
            "data": [str(colours / "train.jsonl")],
            "output": str(tmp_path / output),
            "lora": {"r": 4},
            "checkpoint_every": 2,
            "stage": [{**common, **stage} for stage in stages],
        }
        return TrainConfig.of({**values, **changes})

    return make
