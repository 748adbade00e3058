"""`~` is the home directory wherever a path may be given, and a user that nobody knows gets a sentence."""

import json
import os
from pathlib import Path

import pytest

from m0 import DocumentCache, LoRAConfig, Reranker, RerankerConfig
from m0.checkpoints.files import load_image_settings, save_checkpoint
from m0.cli.main import main
from m0.errors import AdapterError, CheckpointError, ConfigError, DownloadError, ImageError, InputError
from m0.evaluate import Dataset, evaluate, load_contrasts, read_run, write_run
from m0.inputs.images import prepare_picture
from m0.paths import literal, path_of
from m0.train import TrainConfig
from m0.train.data import Examples
from tests.conftest import noise

NOBODY = "~no-such-user-of-this-machine"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home directory, and a working directory beside it in which there is nothing."""
    folder = tmp_path / "home"
    folder.mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path / "work")
    noise(60, 60).save(folder / "x.png")
    (folder / "x.txt").write_text("ein rotes Herz", encoding="utf-8")
    yield folder
    assert os.listdir(tmp_path / "work") == []  # above all no folder named ~


def test_what_a_path_stands_for(home, tmp_path):
    assert path_of("~") == home
    for given in ("~/x.png", b"~/x.png", Path("~/x.png"), Path("~", "x.png")):
        assert path_of(given) == home / "x.png"
    assert path_of("~/x.png", folder=Path("data")) == home / "x.png"
    assert path_of("x.png", folder=Path("data")) == Path("data/x.png")
    assert path_of("a~b/~/x") == Path("a~b/~/x")
    for given in ("", "x.png", "/x.png", "../~"):
        assert path_of(given) == Path(given)


def test_a_user_by_name():
    pwd = pytest.importorskip("pwd")
    try:
        user = pwd.getpwuid(os.getuid())
    except KeyError:
        pytest.skip("this user has no name")
    assert path_of(f"~{user.pw_name}/x") == Path(user.pw_dir, "x")


def test_a_file_whose_name_begins_with_a_tilde(tmp_path, monkeypatch):
    """As for a shell: `~x` is a file where there is no such user, and ./~ never is a home."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / NOBODY).write_text("words")
    assert path_of(NOBODY) == tmp_path / NOBODY
    assert path_of(path_of(NOBODY)) == tmp_path / NOBODY
    assert path_of(NOBODY, folder=tmp_path) == tmp_path / NOBODY
    assert path_of("./~") == tmp_path / "~"
    assert path_of(path_of("./~/x")) == tmp_path / "~" / "x"
    assert literal(Path("~/x")) == tmp_path / "~" / "x"
    with pytest.raises(InputError, match="somebody whom this machine does not know"):
        path_of(NOBODY + "/x.png")


@pytest.mark.parametrize("error", [InputError, ConfigError, AdapterError, CheckpointError, ImageError, DownloadError])
def test_errors_are_of_the_kind_that_is_asked_for(error):
    for given, words in ((NOBODY, f"{NOBODY} begins in the home"), (5, "is given as int"), (None, "is given as NoneType")):
        with pytest.raises(error, match=words):
            path_of(given, error)


def test_pictures_and_texts(home, tiny):
    expected = tiny.logits([("q", {"image": home / "x.png"}), ("q", "ein rotes Herz")])
    assert tiny.logits([("q", Path("~/x.png")), ("q", Path("~/x.txt"))]) == expected
    assert tiny.logits([("q", {"image": "~/x.png"}), ("q", {"text": Path("~/x.txt")})]) == expected
    assert tiny.compute_score([["q", "~/x.png"]], doc_type="image") == tiny.score([("q", {"image": home / "x.png"})])[0]
    assert prepare_picture("~/x.png").digest == prepare_picture(home / "x.png").digest
    with pytest.warns(UserWarning, match="read as text"):
        tiny.score([("q", "~/x.png")])
    for missing in ({"image": "~/no.png"}, Path("~/no.png")):
        with pytest.raises(ImageError, match=f"{home}/no.png does not exist"):
            tiny.score([("q", missing)])
    for unknown in ({"image": f"{NOBODY}/x.png"}, Path(NOBODY, "x.png"), {"text": Path(NOBODY)}):
        with pytest.raises(InputError, match="this machine does not know"):
            tiny.score([("q", unknown)])
        assert len(tiny.rank("q", [unknown, "words"], on_error="skip").failed) == 1


def test_models_adapters_and_kept_documents(home, tiny, tiny_directory):
    tiny.save_pretrained("~/model")
    assert (home / "model" / "config.json").exists()
    save_checkpoint(tiny.model, Path("~/again"))
    assert RerankerConfig.load("~/model") == RerankerConfig.load(Path("~/again/config.json")) == tiny.model.config
    assert load_image_settings("~/model", tiny.model.config) == tiny.image_settings
    reranker = Reranker.from_pretrained("~/model", dtype="float32")
    reranker.adapters.add("mine", LoRAConfig(r=2))
    reranker.adapters.save("~/adapter")
    reranker.documents = DocumentCache(folder="~/kept")
    reranker.prepare(["ein rotes Herz " * 30])
    assert len(list((home / "kept").iterdir())) == 1
    adapted = Reranker.from_pretrained("~/model", dtype="float32", adapter="~/adapter")
    assert adapted.adapters.active == "adapter"
    for call, error in (
        (lambda: Reranker.from_pretrained(NOBODY), DownloadError),
        (lambda: Reranker.from_pretrained(tiny_directory, adapter=NOBODY), AdapterError),
        (lambda: reranker.adapters.save(NOBODY), AdapterError),
        (lambda: adapted.adapters.save(5), AdapterError),
        (lambda: tiny.save_pretrained(NOBODY), CheckpointError),
        (lambda: tiny.save_pretrained(None), CheckpointError),
        (lambda: RerankerConfig.load(NOBODY), ConfigError),
        (lambda: DocumentCache(folder=NOBODY), InputError),
    ):
        with pytest.raises(error, match=r"this machine does not know|a path is given as"):
            call()


def test_explanations(home, tiny):
    explanation = tiny.explain("q", {"image": "~/x.png"})
    explanation.to_html("~/page.html")
    assert explanation.to_png("~/maps") == [home / "maps" / "picture-0.png"]
    tiny.explain_ranking("q", ["words", Path("~/x.png")], "~/report.html")
    assert {"page.html", "maps", "report.html"} <= set(os.listdir(home))
    for call in (explanation.to_html, explanation.to_png, lambda path: tiny.explain_ranking("q", ["words"], path)):
        with pytest.raises(InputError, match=f"^{NOBODY} begins in the home"):
            call(NOBODY)


def test_plots(home):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from m0.interp.grid import save_figure

    save_figure(Figure(), "~/plot.png")
    assert (home / "plot.png").exists()
    with pytest.raises(InputError, match=f"^{NOBODY}/plot.png begins"):
        save_figure(Figure(), f"{NOBODY}/plot.png")


def dataset_in(folder):
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "a", "text": "one"}\n{"_id": "b", "image": "~/x.png"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "words"}\n')
    (folder / "qrels" / "test.tsv").write_text("q\ta\t1\nq\tb\t1\n")


def test_evaluation(home, tiny):
    dataset_in(home / "set")
    dataset = Dataset.load("~/set")
    evaluation = evaluate(tiny, dataset, out="~/out", measures=["RR"])
    assert evaluation.failed == {}
    assert (home / "out" / "report.json").exists()
    write_run("~/copy.trec", read_run("~/out/run.trec"))
    assert (home / "copy.trec").exists()
    (home / "examples.jsonl").write_text(
        json.dumps({"caption_0": "a b", "caption_1": "b a", "image_0": "~/x.png", "image_1": "x"}) + "\n"
    )
    ((_, pictures),) = load_contrasts("~")
    assert pictures == [{"image": str(home / "x.png")}] * 2
    for call in (Dataset.load, load_contrasts, read_run, lambda path: write_run(path, {})):
        with pytest.raises(InputError, match="this machine does not know"):
            call(NOBODY)


def test_training(home):
    stage = {"train": "head", "steps": 1}
    values = {"model": "~/model", "data": "~/train.jsonl", "validation": ["~/v.jsonl"], "output": "~/run", "stage": [stage]}
    (home / "model").mkdir()
    config = TrainConfig.of(values, Path("elsewhere"))
    assert config.data == (str(home / "train.jsonl"),)
    assert config.validation == (str(home / "v.jsonl"),)
    assert (config.output, config.model) == (str(home / "run"), str(home / "model"))
    (home / "train.jsonl").write_text('{"query": "q", "positive": [{"image": "~/x.png"}], "negative": ["a"]}\n')
    assert Examples([path_of("~/train.jsonl")])[0].positive == ({"image": str(home / "x.png")},)
    (home / "config.toml").write_text('data = "train.jsonl"\noutput = "run"\n[[stage]]\ntrain = "head"\n')
    assert TrainConfig.load("~/config.toml").data == (str(home / "train.jsonl"),)
    for changes in ({"data": NOBODY}, {"output": NOBODY}, {"model": NOBODY}):
        with pytest.raises(ConfigError, match="this machine does not know"):
            TrainConfig.of({**values, **changes})
    with pytest.raises(ConfigError, match="this machine does not know"):
        TrainConfig.load(NOBODY)


def test_the_command_line(home, tiny_directory, capsys):
    """A shell expands neither `--html=~/x` nor what lies in quotes."""
    os.symlink(tiny_directory, home / "model")
    (home / "list.jsonl").write_text('{"image": "~/x.png"}\n{"image": "x.png"}\n["words", {"image": "~/x.png"}]\n')

    def run(*arguments):
        status = main(list(arguments))
        output = capsys.readouterr()
        assert status == 0, output.err
        return output.out

    asked = ("--model", "~/model", "--json")
    report = json.loads(run("rank", "q", "~/list.jsonl", "~/x.txt", "~/x.png", "--documents-folder", "~/kept", *asked))
    assert len(report["results"]) == 5
    run("rank", "~/x.png", "~/x.txt", "--image-query", *asked)
    run("explain", "q", "~/x.png", "--html", "~/page.html", "--png", "~/maps", *asked)
    dataset_in(home / "set")
    run("evaluate", "~/set", "--out", "~/out", "--measures", "RR", *asked)
    run("evaluate", "~/set", "--candidates", "~/out/run.trec", "--compare", "~/out/run.trec", "--measures", "RR", *asked)
    run("info", "~/model")
    assert {"kept", "page.html", "maps", "out"} <= set(os.listdir(home))
    main(["explain", "q", "~/x.txt", "--html", "~/x.txt", *asked])
    assert "x.txt is one of the documents" in capsys.readouterr().err
    main(["rank", "~/x.png", "~/x.txt", *asked])
    assert "--image-query shows the picture" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["rank", "q", NOBODY],
        ["rank", "q", "{list}", "--model", "{model}"],
        ["rank", "q", "{text}", "--model", NOBODY],
        ["rank", "q", "{text}", "--model", "{model}", "--adapter", NOBODY],
        ["rank", "q", "{text}", "--model", "{model}", "--documents-folder", NOBODY],
        ["explain", "q", "{text}", "--model", "{model}", "--html", NOBODY],
        ["explain", "q", "{text}", "--model", "{model}", "--png", NOBODY],
        ["evaluate", NOBODY],
        ["train", NOBODY],
        ["train", "{toml}", "--output", NOBODY],
        ["info", NOBODY],
        ["fetch", "a/b", "--to", NOBODY],
    ],
)
def test_an_unknown_user_on_the_command_line(home, tiny_directory, capsys, arguments):
    (home / "list.jsonl").write_text(json.dumps({"image": f"{NOBODY}/x.png"}) + "\n")
    (home / "config.toml").write_text('data = "train.jsonl"\noutput = "run"\n[[stage]]\ntrain = "head"\n')
    places = {"list": home / "list.jsonl", "text": home / "x.txt", "model": tiny_directory, "toml": home / "config.toml"}
    assert main([argument.format(**places) for argument in arguments]) == 2
    assert "this machine does not know" in capsys.readouterr().err


def test_a_folder_of_files_with_tildes(home, tmp_path, tiny_directory, capsys, monkeypatch):
    """What was found by listing a folder is no home directory: not ~/x.txt in a folder named ~, nor ~root.txt."""
    here = tmp_path / "here"
    (here / "~").mkdir(parents=True)
    (here / "~" / "x.txt").write_text("from here")
    (here / "~root.txt").write_text("from here, too")
    noise(60, 60, 1).save(here / "~root.png")
    monkeypatch.chdir(here)
    assert main(["rank", "q", ".", "--model", str(tiny_directory), "--json"]) == 0
    names = {Path(result["name"]).name for result in json.loads(capsys.readouterr().out)["results"]}
    assert names == {"x.txt", "~root.txt", "~root.png"}
    monkeypatch.chdir(tmp_path / "work")
