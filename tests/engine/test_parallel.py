"""Work shared over processes, and one model over several of them: the same scores as one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import m0.engine.parallel
from m0 import Cascade
from m0.cli.main import main
from m0.engine.parallel import usable_cores, use_cores
from m0.engine.tensor_parallel import split
from m0.errors import InputError
from tests.conftest import noise

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["the network must be configured after the installation", "ein Apfel", "a needle that points north", "x", "x"]
PROGRAM = """
import json, sys
import torch
from m0 import Cascade, Reranker
from m0.errors import M0Error
from m0.engine.parallel import processes
from m0.engine.tensor_parallel import split
from tests.conftest import noise
from tests.engine.test_parallel import DOCUMENTS

documents = [*DOCUMENTS, noise(84, 56, 1), ["both", noise(56, 56, 2)]]
with processes() as first:
    reranker = Reranker.from_pretrained(sys.argv[1], dtype="float32")
    found = {"sizes": []}
    reranker.model.decoder.register_forward_pre_hook(lambda module, args: found["sizes"].append(len(args[0])))
    found["shared"] = {r.index: r.logit for r in reranker.rank("network", documents, shared=True)}
    found["cascade"] = [r.index for r in reranker.rank("network", documents, shared=True, cascade=Cascade(keep=3, depth=2))]
    bias = reranker.model.head[0].bias
    before = bias.detach().clone()
    with torch.no_grad():
        bias.fill_(float("nan") if not first else 1.0)
    try:
        reranker.rank("network", documents[:4], shared=True)
    except M0Error as error:
        found["error"] = str(error)
    with torch.no_grad():
        bias.copy_(before)
    split(reranker.model)
    found["heads"] = reranker.model.decoder.layers[0].self_attn.num_heads
    found["split"] = {r.index: r.logit for r in reranker.rank("network", documents)}
    try:
        reranker.rank("network", documents, shared=True)
    except M0Error as error:
        found["both"] = str(error)
    with open(f"{sys.argv[2]}/{torch.distributed.get_rank()}.json", "w") as file:
        json.dump(found, file)
"""


@pytest.fixture(scope="module")
def found(tiny_directory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    (folder / "program.py").write_text(PROGRAM, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", str(folder / "program.py"), str(tiny_directory), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(tiny):
    documents = [*DOCUMENTS, noise(84, 56, 1), ["both", noise(56, 56, 2)]]
    ranking = tiny.rank("network", documents)
    cascade = tiny.rank("network", documents, cascade=Cascade(keep=3, depth=2))
    return {str(r.index): r.logit for r in ranking}, [r.index for r in cascade]


def test_a_split_model_is_not_shared_as_well(found):
    assert all("split over the same processes" in process["both"] for process in found)


def test_shared_ranking(found, alone):
    for process in found:
        assert process["shared"] == pytest.approx(alone[0], abs=1e-5)
        assert process["cascade"] == alone[1]
    assert found[0]["sizes"][0] != found[1]["sizes"][0]  # each did a part


def test_a_process_that_fails_takes_the_others_along(found):
    assert "process 1 could not do its part" in found[0]["error"]
    assert "not a number" in found[1]["error"]


def test_a_split_model(found, alone, tiny):
    for process in found:
        assert process["split"] == pytest.approx(alone[0], abs=1e-5)
        assert process["heads"] == tiny.model.config.decoder.num_heads // 2


def test_without_processes(tiny):
    with pytest.raises(InputError, match="processes"):
        tiny.rank("network", DOCUMENTS, shared=True)
    with pytest.raises(InputError, match="torchrun"):
        split(tiny.model)


TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]


def test_rank_under_torchrun(tiny_directory, tmp_path):
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS[:4]))
    arguments = ["-m", "m0", "rank", "network", str(tmp_path / "documents.jsonl"), str(tmp_path / "absent.txt"), "--json"]
    arguments += ["--model", str(tiny_directory), "--dtype", "float32"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    results = []
    for launcher, status in (([], 1), (TORCHRUN, 0)):  # torchrun would take 1 for a crash
        command = [sys.executable, *launcher, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == status, done.stderr[-3000:]
        assert done.stderr.count("absent.txt does not exist.") == 1
        assert "ChildFailedError" not in done.stderr
        results.append([(result["name"], round(result["logit"], 4)) for result in json.loads(done.stdout)["results"]])
    assert results[0] == results[1]


def test_one_of_several_processes_prints_contrasts(tiny_directory, tmp_path):
    for number in range(2):
        noise(60, 60, seed=number).save(tmp_path / f"{number}.png")
    row = {"caption_0": "one", "caption_1": "two", "image_0": "0.png", "image_1": "1.png"}
    (tmp_path / "examples.jsonl").write_text(json.dumps(row) + "\n")
    command = [sys.executable, *TORCHRUN, "-m", "m0", "evaluate", str(tmp_path), "--winoground", "--json"]
    command += ["--model", str(tiny_directory)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["examples"] == 1


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "20000 100000"}, 1),
        ({"cpu.max": "1600000 100000"}, 8),
        ({"cpu.max": "what"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000"}, 8),
    ],
    ids=str,
)
def test_cores_of_a_container(files, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert usable_cores(tmp_path) == cores


@pytest.mark.parametrize(
    ("asked", "variable", "threads"), [(None, None, 2), (None, "6", 5), (3, None, 3), (3, "6", 3)], ids=str
)
def test_threads(asked, variable, threads, monkeypatch):
    """Five are PyTorch's own choice here, two the cores there are."""
    chosen = [5]
    monkeypatch.setattr(torch, "get_num_threads", lambda: chosen[-1])
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(m0.engine.parallel, "usable_cores", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    use_cores(asked)
    assert chosen[-1] == threads


def test_no_threads_at_all(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a document")
    assert main(["rank", "network", str(tmp_path / "a.txt"), "--threads", "0"]) == 2
    assert capsys.readouterr().err == "m0: threads is 0, but must be at least 1 and at most 1024.\n"


@pytest.mark.parametrize("threads", [1025, 10**6, 2**31, 10**12])
def test_more_threads_than_a_system_bears_are_refused(threads):
    with pytest.raises(InputError, match="at most 1024"):
        use_cores(threads)
