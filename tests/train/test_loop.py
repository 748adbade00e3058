"""The training loop: it learns, it stops well, it goes on as if it had not stopped, and many processes do as one."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from m0 import Reranker
from m0.errors import InputError, TrainError
from m0.train import TrainConfig, checkpoints, train, updates

ROOT = Path(__file__).parent.parent.parent
# A run in a process of its own: the config's values as JSON on the command line.
PROGRAM = """
import json, sys, torch
torch.set_num_threads(1)
from m0.errors import M0Error
from m0.train import TrainConfig, train
try:
    train(TrainConfig.of(json.loads(sys.argv[1])), resume=json.loads(sys.argv[2]))
except M0Error as error:
    sys.exit(f"m0: {error}")
"""


def values_of(config, **changes):
    """A config as the mapping it was made of."""
    from dataclasses import asdict

    values = asdict(config)
    values["stage"] = [{key: value for key, value in stage.items() if value is not None} for stage in values.pop("stages")]
    return {key: value for key, value in values.items() if value is not None} | changes


def start(config, resume=False, processes=1, **changes):
    import json

    command = [sys.executable, "-c", PROGRAM]
    if processes > 1:
        program = Path(config.output).parent / "program.py"
        program.write_text(PROGRAM, encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--master-port=0"]
        command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", str(program)]
    command += [json.dumps(values_of(config, **changes)), json.dumps(resume)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def finish(process):
    out, error = process.communicate(timeout=240)
    assert process.returncode == 0, error[-3000:]
    return out, error


def curve(config, column="loss"):
    with (Path(config.output) / "curves.csv").open(encoding="utf-8") as file:
        return [float(row[column]) for row in csv.DictReader(file)]


def weights(config):
    """Everything that was trained, as the last checkpoint has it."""
    tensors, _ = checkpoints.read_checkpoint(checkpoints.find_checkpoints(Path(config.output))[-1])
    return tensors


def test_what_a_run_leaves(configured, colours):
    config = configured(stages=({"train": "lora"}, {"train": "head"}), validation=[str(colours / "dev.jsonl")])
    result = train(config)
    run = Path(config.output)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in result.iterdir()}
    import json

    about = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert about["seed"] == config.seed
    assert about["versions"]["torch"] == torch.__version__
    assert all(len(value) == 64 for value in about["data"].values())
    assert curve(config, "step") == list(range(1, 9))
    with (run / "curves.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["stage"] for row in rows] == ["1"] * 4 + ["2"] * 4
    assert rows[-1]["validation_loss"]
    assert len(checkpoints.find_checkpoints(run)) == config.keep_checkpoints
    trained = load_file(result / "adapter_model.safetensors")
    assert any("lora_A" in key for key in trained)
    assert any("score" in key for key in trained)
    reranker = Reranker.from_pretrained(config.model, dtype="float32", adapter=result)
    assert reranker.adapters.active == "result"


def test_curves_are_drawn(configured, colours):
    pytest.importorskip("matplotlib")
    config = configured(stages=({"train": "lora", "steps": 3}, {"train": "head", "steps": 2}))
    train(config)
    from PIL import Image

    with Image.open(Path(config.output) / "curves.png") as image:
        assert image.width > 400


@pytest.mark.parametrize("kind", ["lora", "head", "all"])
def test_only_what_a_stage_names_is_trained(configured, kind):
    config = configured(stages=({"train": kind, "steps": 2},))
    result = train(config)
    names = {name.removeprefix("parameter/") for name in weights(config) if name.startswith("parameter/")}
    if kind == "lora":
        assert all(".adapters." in name for name in names)
        return
    before = Reranker.from_pretrained(config.model, dtype="float32").model.state_dict()
    after = Reranker.from_pretrained(result, dtype="float32").model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == (set(before) if kind == "all" else {name for name in before if name.startswith("head.")})


def test_it_learns(configured):
    """m0-nano learns by LoRA to tell 8 colours: on its training data the loss falls."""
    config = configured(
        model="m0-nano",
        stages=({"train": "lora", "steps": 20, "learning_rate": 3e-3, "negatives": 7},),
        checkpoint_every=100,
    )
    train(config)
    losses = curve(config)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_the_same_run_twice(configured):
    one, two = configured(output="one"), configured(output="two")
    train(one)
    train(two)
    assert curve(one) == curve(two)
    first, second = weights(one), weights(two)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_resume_after_kill_is_bit_for_bit(configured, tmp_path):
    """Killed with SIGKILL in the second stage, with dropout and mined negatives; then resumed."""
    stages = (
        {"train": "lora", "steps": 5},
        {"train": "head", "steps": 40, "hard_negatives": 2, "mining_pool": 4},
    )
    lora = {"r": 4, "dropout": 0.1}
    whole = configured(stages=stages, output="whole", lora=lora, checkpoint_every=3)
    finish(start(whole))
    broken = configured(stages=stages, output="broken", lora=lora, checkpoint_every=3)
    process = start(broken)
    run = Path(broken.output)
    deadline = time.monotonic() + 120
    while not any(int(checkpoints.CHECKPOINT_NAME.fullmatch(path.name)[1]) >= 9 for path in checkpoints.find_checkpoints(run)):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(curve(broken)) < 45, "it was not killed in time"
    _, error = finish(start(broken, resume=True))
    assert "going on from" in error
    first, second = weights(whole), weights(broken)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert curve(whole) == curve(broken)
    for name in ("adapter_model.safetensors",):
        a, b = (load_file(Path(c.output) / "result" / name) for c in (whole, broken))
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("kind", "parallel"), [("lora", "ddp"), ("all", "ddp"), ("lora", "fsdp"), ("all", "fsdp")], ids="-".join
)
def test_two_processes_do_as_one(configured, kind, parallel):
    stages = ({"train": kind, "steps": 6, "in_batch_negatives": True}, {"train": "head", "steps": 2})
    one, two = configured(stages=stages, output="one"), configured(stages=stages, output="two", parallel=parallel)
    train(one)
    finish(start(two, processes=2))
    assert curve(two) == pytest.approx(curve(one), abs=1e-4)
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(second[name], first[name], atol=2e-4, rtol=2e-2, msg=name)


def test_another_number_of_processes_takes_over(configured):
    """Begun by two processes with FSDP, finished by one."""
    stages = ({"train": "lora", "steps": 8},)
    whole, moved = configured(stages=stages, output="whole"), configured(stages=stages, output="moved", parallel="fsdp")
    train(whole)
    finish(start(moved, processes=2))
    run = Path(moved.output)
    for path in checkpoints.find_checkpoints(run)[1:]:
        path.unlink()
    assert checkpoints.find_checkpoints(run)[-1].name == "step-00000006.safetensors"
    train(TrainConfig.of(values_of(moved, parallel="ddp")), resume=True)
    assert curve(moved) == pytest.approx(curve(whole), abs=1e-4)


def test_a_killed_worker_ends_the_run_clearly(configured):
    config = configured(stages=({"train": "lora", "steps": 2000},), checkpoint_every=1)
    process = start(config, processes=2)
    deadline = time.monotonic() + 120
    while not checkpoints.find_checkpoints(Path(config.output)):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    _, error = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "SIGKILL" in error or "Signal 9" in error
    tensors, about = checkpoints.read_checkpoint(checkpoints.find_checkpoints(Path(config.output))[-1])
    assert tensors
    assert about["step"] >= 1


def test_gradient_checkpointing_changes_nothing(configured):
    plain, saving = configured(output="plain"), configured(output="saving", gradient_checkpointing=True)
    train(plain)
    train(saving)
    assert curve(plain) == pytest.approx(curve(saving), abs=1e-6)


def test_accumulated_passes_equal_one(configured):
    small = configured(stages=({"train": "lora", "queries_per_pass": 1},), output="small")
    large = configured(stages=({"train": "lora", "queries_per_pass": 4},), output="large")
    train(small)
    train(large)
    assert curve(small) == pytest.approx(curve(large), abs=1e-5)


@pytest.mark.parametrize("changes", [{"dtype": "bfloat16"}, {"autocast": True}], ids=str)
def test_bfloat16(configured, changes):
    exact, rough = configured(output="exact"), configured(output="rough", **changes)
    train(exact)
    train(rough)
    assert curve(rough) == pytest.approx(curve(exact), rel=0.03)
    kept = {name: t.dtype for name, t in weights(rough).items() if name.startswith("parameter/")}
    assert set(kept.values()) == {torch.float32}


def test_dora_and_rslora(configured):
    for number, lora in enumerate(({"r": 4, "use_dora": True}, {"r": 4, "use_rslora": True, "target_modules": "all-linear"})):
        config = configured(lora=lora, output=f"run{number}", stages=({"train": "lora", "steps": 2},))
        Reranker.from_pretrained(config.model, adapter=train(config))


def test_distillation(configured):
    config = configured(stages=({"train": "lora", "steps": 3, "loss": {"margin_mse": 1.0, "kl": 0.5}},))
    train(config)
    assert all(loss > 0 for loss in curve(config))


def test_hard_negatives_are_the_best_scored_that_are_not_positive(nano, tmp_path):
    import json

    from m0.train.data import Examples
    from m0.train.mining import mine

    words = ["dog", "cat", "house", "tree", "car", "sun", "apple", "guitar", "sled", "egg"]
    path = tmp_path / "train.jsonl"
    lines = [{"query": word, "positive": [word, f"the {word}"], "negative": [f"no {word}", "something"]} for word in words]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    examples = Examples([path])
    mined = mine(nano, examples, [0, 5], keep=4, pool=6, seed=1)
    for number, hard in mined.items():
        example = examples[number]
        assert 2 <= len(hard) <= 4
        assert not set(hard) & set(example.positive)
        scores = nano.score([(example.query, document) for document in hard])
        assert scores == sorted(scores, reverse=True)
        best = max(nano.score([(example.query, document) for document in example.positive]))
        assert all(score <= 0.95 * best for d, score in zip(hard, scores, strict=True) if d not in example.negative)
        weakest = min(scores)
        left = [d for d in example.negative if d not in hard]
        assert all(score <= weakest for score in nano.score([(example.query, d) for d in left])) if left else True
    assert mined == mine(nano, examples, [0, 5], keep=4, pool=6, seed=1)


def test_the_query_itself_is_no_hard_negative(nano, tmp_path, monkeypatch):
    """Questions that ask the same: each is another's positive. Whatever it scores."""
    import json

    from m0.train import mining
    from m0.train.data import Examples
    from m0.train.mining import mine

    monkeypatch.setattr(mining, "MAX_SHARE_OF_POSITIVE_SCORE", 2.0)

    words = ["how to install it", "installing the system", "which animals live in the sea", "sea mammals"]
    path = tmp_path / "train.jsonl"
    lines = [{"query": words[i], "positive": [words[i ^ 1], {"text": f"{words[i ^ 1]}?"}]} for i in range(4)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    mined = mine(nano, Examples([path]), range(4), keep=8, pool=3, seed=1)
    for number, hard in mined.items():
        assert words[number] not in hard
        assert words[number ^ 2] in hard, "others' are found"


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_a_number_stops_the_run(configured, monkeypatch):
    config = configured(stages=({"train": "lora", "steps": 6},))
    original, calls = updates.weighted_loss, []

    def poisoned(*arguments):
        calls.append(1)
        return original(*arguments) * (float("nan") if len(calls) > 14 else 1.0)

    monkeypatch.setattr(updates, "weighted_loss", poisoned)
    with pytest.raises(TrainError, match=r"the loss is nan at step 4: .*last good checkpoint is .*step-00000002"):
        train(config)
    monkeypatch.undo()
    train(config, resume=True)
    assert len(curve(config)) == 6


def test_a_full_disk_leaves_the_last_good_checkpoint(configured, monkeypatch):
    config = configured(stages=({"train": "lora", "steps": 6},))
    original, calls = checkpoints.save_file, []

    def full(tensors, path, metadata=None):
        calls.append(1)
        if len(calls) > 1:
            Path(path).write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        original(tensors, path, metadata=metadata)

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(TrainError, match=r"step-00000004.* No space left on device; .*step-00000002"):
        train(config)
    run = Path(config.output)
    assert [path.name for path in (run / checkpoints.CHECKPOINT_FOLDER).iterdir()] == ["step-00000002.safetensors"]
    monkeypatch.undo()
    (run / "run.json").write_text('{"seed": 1, "vers')  # the disk was full for it, too
    train(config, resume=True)
    assert len(curve(config)) == 6
    assert "is lost" in (run / "run.json").read_text()


def test_refusals(configured, colours, tmp_path):
    config = configured(stages=({"train": "lora", "steps": 2},))
    with pytest.raises(TrainError, match="no checkpoint to resume"):
        train(config, resume=True)
    train(config)
    with pytest.raises(TrainError, match="not empty"):
        train(config)
    with pytest.raises(TrainError, match=r"another config \(stage 1: steps was 2, is 3\)"):
        train(configured(stages=({"train": "lora", "steps": 3},)), resume=True)
    with pytest.raises(TrainError, match=r"another config \(seed was 1, is 2\)"):
        train(configured(stages=({"train": "lora", "steps": 2},), seed=2), resume=True)
    train(configured(stages=({"train": "lora", "steps": 2},), validate_every=7), resume=True)  # changes no weight
    checkpoints.find_checkpoints(Path(config.output))[-1].write_bytes(b"damaged")
    with pytest.raises(TrainError, match="not a readable checkpoint"):
        train(config, resume=True)


def test_data_that_changed_is_not_resumed(configured, colours, tmp_path):
    data = tmp_path / "train.jsonl"
    data.write_text('{"query": "q", "positive": ["a"], "negative": ["b"]}\n', encoding="utf-8")
    config = configured(stages=({"train": "lora", "steps": 2},), data=[str(data)])
    train(config)
    data.write_text('{"query": "q", "positive": ["a"], "negative": ["c"]}\n', encoding="utf-8")
    with pytest.raises(TrainError, match="a file has changed"):
        train(config, resume=True)


@pytest.mark.parametrize("on_bad_line", ["raise", "skip"])
def test_a_picture_that_turns_out_damaged(configured, tmp_path, capsys, on_bad_line):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    data = tmp_path / "train.jsonl"
    lines = [
        '{"query": "q", "positive": ["a"], "negative": ["b", {"image": "broken.png"}]}',
        '{"query": "r", "positive": ["b"]}',
    ]
    data.write_text("\n".join(lines), encoding="utf-8")
    config = configured(stages=({"train": "lora", "steps": 2},), data=[str(data)], on_bad_line=on_bad_line)
    if on_bad_line == "raise":
        with pytest.raises(InputError, match=r"the query 'q' cannot be used: .*broken.png is not a picture"):
            train(config)
    else:
        train(config)
        assert "train.jsonl, line 1: a document of the query 'q'" in capsys.readouterr().err


def test_a_damaged_picture_for_validation_shows_before_the_work(configured, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    data = tmp_path / "dev.jsonl"
    data.write_text('{"query": "q", "positive": ["a"], "negative": [{"image": "broken.png"}]}\n', encoding="utf-8")
    config = configured(stages=({"train": "lora", "steps": 2},), validation=[str(data)])
    with pytest.raises(InputError, match=r"dev.jsonl, line 1.*broken.png is not a picture"):
        train(config)
    assert not curve(config)


def test_success_is_measured_where_there_is_something_to_tell_apart(configured, tmp_path):
    data = tmp_path / "dev.jsonl"
    data.write_text('{"query": "q", "positive": ["a", "b"]}\n', encoding="utf-8")
    config = configured(stages=({"train": "lora", "steps": 2},), validation=[str(data)])
    train(config)
    with (Path(config.output) / "curves.csv").open(encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["validation_loss"]) > 0
    assert last["validation_success"] == ""


def test_a_stage_without_a_usable_query_is_no_training(configured, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    data = tmp_path / "train.jsonl"
    data.write_text('{"query": {"image": "broken.png"}, "positive": ["a"], "negative": ["b"]}\n' * 4, encoding="utf-8")
    config = configured(stages=({"train": "lora", "steps": 2},), data=[str(data)], on_bad_line="skip")
    with pytest.raises(TrainError, match="stage 1 has trained on nothing"):
        train(config)
    assert not (Path(config.output) / "result").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks")
def test_a_second_training_in_the_same_directory_is_refused(configured, tmp_path):
    config = configured(stages=({"train": "lora", "steps": 2},))
    train(config)
    with checkpoints.lock_run(Path(config.output)), pytest.raises(TrainError, match="another training is at work in"):
        train(config, resume=True)
    train(config, resume=True)


def test_parameters_that_no_query_reached_are_resumed_too(configured, tmp_path):
    """Texts alone never reach the vision tower."""
    data = tmp_path / "texts.jsonl"
    data.write_text('{"query": "q", "positive": ["a"], "negative": ["b"]}\n' * 8, encoding="utf-8")
    whole = configured(stages=({"train": "all", "steps": 6},), data=[str(data)], output="whole")
    train(whole)
    broken = configured(stages=({"train": "all", "steps": 6},), data=[str(data)], output="broken")
    train(broken)
    for path in checkpoints.find_checkpoints(Path(broken.output))[1:]:
        path.unlink()
    train(broken, resume=True)
    first, second = weights(whole), weights(broken)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_do_as_one_where_few_steps_have_pictures(configured, colours, tmp_path):
    """AdamW moves a parameter without a gradient in some steps alike, however many processes there are."""
    data = tmp_path / "mixed.jsonl"
    lines = [{"query": f"word {i}", "positive": [f"text {i}"], "negative": ["other", "more"]} for i in range(10)]
    lines[3]["positive"] = [{"image": str(colours / "red.png")}]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    stages = ({"train": "all", "steps": 7},)
    one = configured(stages=stages, output="one", data=[str(data)])
    two = configured(stages=stages, output="two", data=[str(data)])
    train(one)
    finish(start(two, processes=2))
    assert curve(two) == pytest.approx(curve(one), abs=1e-4)


def test_a_run_stopped_before_its_first_checkpoint_begins_anew(configured, monkeypatch):
    config = configured(stages=({"train": "lora", "steps": 4},))

    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(updates, "compute_loss", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.undo()
    with pytest.raises(TrainError, match="has no checkpoint"):
        train(TrainConfig.of(values_of(config, seed=9)), resume=True)
    train(config, resume=True)
    assert len(curve(config)) == 4


@pytest.mark.parametrize(("rate", "reason"), [(1e20, "after step 1"), (1e38, "cannot be computed")])
def test_what_the_last_update_did_is_seen_before_it_is_kept(configured, rate, reason):
    config = configured(stages=({"train": "lora", "steps": 1, "learning_rate": rate, "warmup": 0.0},))
    with pytest.raises(TrainError, match=reason):
        train(config)
    assert not checkpoints.find_checkpoints(Path(config.output))
    assert not (Path(config.output) / "result").exists()


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(configured, capsys):
    config = configured(stages=({"train": "lora", "steps": 6},))
    train(config)
    newest = checkpoints.find_checkpoints(Path(config.output))[-1]
    newest.write_bytes(b"broken")
    train(config, resume=True)
    assert "Trying the one before" in capsys.readouterr().err
    assert len(curve(config)) == 6


def test_a_teachers_scores_hinder_nothing_where_no_loss_distils(configured, colours):
    """Lines with scores still meet other queries' documents."""
    config = configured(stages=({"train": "lora", "steps": 1, "in_batch_negatives": True, "negatives": 0},))
    train(config)
    assert curve(config)[0] > 0


def test_lines_without_scores_are_bad_lines_where_a_loss_distils(configured, tmp_path):
    data = tmp_path / "train.jsonl"
    data.write_text('{"query": "q", "positive": ["a"], "negative": ["b"]}\n', encoding="utf-8")
    config = configured(stages=({"train": "lora", "loss": {"kl": 1.0}},), data=[str(data)])
    with pytest.raises(InputError, match=r'train.jsonl, line 1: lacks "scores"'):
        train(config)


def test_a_stage_with_nothing_to_compare_is_refused(configured, tmp_path):
    data = tmp_path / "train.jsonl"
    data.write_text('{"query": "q", "positive": ["a"]}\n', encoding="utf-8")
    with pytest.raises(TrainError, match="stage 1: there is nothing to rank"):
        train(configured(data=[str(data)]))
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(TrainError, match="is a file; output must name a directory"):
        train(configured(output="file"))
