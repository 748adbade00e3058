"""What a user calls: rank, score, encode, compute_score, save_pretrained, and what goes wrong."""

import json
import random
import shutil
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies
from PIL import Image

from m0 import Cascade, LoRAConfig, Reranker
from m0.checkpoints.files import list_tensors
from m0.engine import batching
from m0.errors import AdapterError, CheckpointError, DownloadError, ImageError, InputError, M0Error
from tests.conftest import noise

MIXED = [
    "ein rotes Herz",
    {"image": noise(60, 60)},
    {"text": "das dritte"},
    ["Text, dann ein Bild:", noise(90, 60, 1), "und noch eins:", noise(60, 90, 2)],
    noise(200, 100, 3),
    "-",
]


def test_pictures_opened_by_threads(tiny, tmp_path):
    """The warnings' filters stay as they were, and what Pillow has opened may come more than once."""
    paths = []
    for number in range(12):
        noise(200, 200, number).convert("P").save(tmp_path / f"{number}.png")
        paths.append(tmp_path / f"{number}.png")
    before = list(warnings.filters)
    tiny.rank("network", paths)
    assert list(warnings.filters) == before
    opened = Image.open(paths[0])
    assert len({result.logit for result in tiny.rank("network", [opened] * 6)}) == 1
    with pytest.warns(UserWarning, match="read as text") as caught:
        tiny.rank("network", [str(paths[0]), paths[1]])
    assert caught[0].filename == __file__


def test_a_long_list_is_scored_in_stretches(tiny):
    """While one stretch is computed the next is opened; results and numbers are as if it were one."""
    documents = [f"document {number} of many" if number % 3 else noise(56, 56, number) for number in range(30)]
    whole = tiny.rank("network", documents)
    short = tiny.rank("network", documents, batch_tokens=16)
    assert [result.index for result in short] == [result.index for result in whole]
    assert [result.logit for result in short] == pytest.approx([result.logit for result in whole], abs=1e-5)
    with pytest.raises(InputError, match="document 29: "):
        tiny.rank("network", [*documents[:29], ""], batch_tokens=16)
    broken = tiny.rank("network", [*documents, b"no picture"], batch_tokens=16, on_error="skip")
    assert [failed.index for failed in broken.failed] == [30]


def test_a_ranking_is_ordered_and_complete(tiny):
    ranking = tiny.rank("two dogs", MIXED)
    assert sorted(result.index for result in ranking) == list(range(len(MIXED)))
    assert [result.score for result in ranking] == sorted((result.score for result in ranking), reverse=True)
    for result in ranking:
        assert result.document is MIXED[result.index]
        assert result.score == pytest.approx(1 / (1 + np.exp(2.65 - result.logit)), abs=1e-6)
        assert result.tokens == tiny.encode("two dogs", MIXED[result.index]).counts
        assert result.cut == ()
    assert ranking.failed == []
    assert list(tiny.rank("two dogs", MIXED, top_n=2)) == list(ranking[:2])


def test_alone_or_in_a_batch_and_to_the_last_bit(tiny):
    logits = {result.index: result.logit for result in tiny.rank("two dogs", MIXED)}
    again = {result.index: result.logit for result in tiny.rank("two dogs", MIXED)}
    assert again == logits
    for index, document in enumerate(MIXED):
        assert tiny.rank("two dogs", [document])[0].logit == pytest.approx(logits[index], abs=1e-5)
    for batch_tokens in (1, 40, 100):
        for result in tiny.rank("two dogs", MIXED, batch_tokens=batch_tokens):
            assert result.logit == pytest.approx(logits[result.index], abs=1e-5)


def test_ties_keep_the_order_given(tiny):
    assert [result.index for result in tiny.rank("q", ["same", "same", "same"])] == [0, 1, 2]


def test_score_and_rank_agree(tiny):
    queries = ["two dogs", {"image": noise(60, 60)}, ["a", noise(60, 60, 4)]]
    pairs = [(query, document) for query in queries for document in MIXED]
    scores = tiny.score(pairs)
    for number, query in enumerate(queries):
        for result in tiny.rank(query, MIXED):
            assert scores[number * len(MIXED) + result.index] == pytest.approx(result.score, abs=1e-6)


def test_pictures_are_looked_at_once_in_cascades_and_portions(tiny, monkeypatch):
    looked = []
    original = tiny.model.vision.forward
    monkeypatch.setattr(tiny.model.vision, "forward", lambda patches, grids: looked.extend(grids) or original(patches, grids))
    pictures = [noise(56, 56, 1), noise(56, 84, 2), noise(84, 56, 3)]
    tiny.rank("words", pictures, cascade=Cascade(keep=2, depth=1))
    assert len(looked) == 3
    looked.clear()
    tiny.compute_score([[pictures[0], f"text {i}"] for i in range(5)], query_type="image", batch_size=2)
    assert len(looked) == 1


def test_patches_do_not_stay_with_a_picture(tiny):
    part = tiny.read(noise(84, 84))
    tiny.score([("words", part)])
    assert set(vars(part[0])) == {"pixels", "original_size", "settings", "frame", "digest", "original"}
    assert part[0].original is None, "only an explanation keeps the picture as it came"


def test_one_picture_is_looked_at_once(tiny, monkeypatch):
    looked = []
    original = tiny.model.vision.forward
    monkeypatch.setattr(tiny.model.vision, "forward", lambda patches, grids: looked.extend(grids) or original(patches, grids))
    tiny.score([(query, noise(60, 60)) for query in ("a", "b", "c")], batch_tokens=10)
    assert looked == [(4, 4)]


def test_a_document_longer_than_a_batch_is_computed_once_for_its_queries(tiny, monkeypatch):
    computed = []
    original = tiny.model.decoder.forward

    def counted(embeddings, *args, **more):
        computed.append(len(embeddings))
        return original(embeddings, *args, **more)

    monkeypatch.setattr(tiny.model.decoder, "forward", counted)
    pairs = [(f"query {number}", "a document longer than a batch " * 20) for number in range(5)]
    tiny.score(pairs, batch_tokens=50)
    document = tiny.encode(*pairs[0]).counts["document"]
    assert len(computed) == 1
    assert document < computed[0] < 2 * document
    computed.clear()
    with tiny.record("decoder.norm.out"):  # where nothing is shared
        tiny.score(pairs, batch_tokens=50)
    assert len(computed) == len(pairs)


def test_queries_that_meet_one_copy_of_a_document_have_a_limit(tiny, monkeypatch):
    monkeypatch.setattr(batching, "MAX_GROUP_QUERY_TOKENS", 60)
    encodings = [tiny.encode(f"a query of some words {number}", "a document") for number in range(30)]
    shared = encodings[0].counts["document"]
    batches = list(batching.batches(encodings, 10_000, set()))
    assert sorted(number for batch in batches for number in batch) == list(range(30))
    assert all(sum(len(encodings[number]) - shared for number in batch) <= 60 for batch in batches)
    assert len(batches) < 30


def test_compute_score_is_the_vendors(tiny):
    pairs = [["a query", "a document"], ["another", "one more"]]
    scores = tiny.compute_score(pairs, max_length=1024)
    assert scores == pytest.approx(tiny.score([tuple(pair) for pair in pairs]))
    assert isinstance(tiny.compute_score(pairs[0]), float)
    assert tiny.compute_score(pairs[:1]) == pytest.approx(scores[0])
    raw = tiny.compute_score(pairs, normalize_scores=False)
    assert 1 / (1 + np.exp(2.65 - np.array(raw))) == pytest.approx(np.array(scores))
    one_by_one = tiny.compute_score(pairs, batch_size=1, show_progress=True)
    assert one_by_one == pytest.approx(scores, abs=1e-5)


def test_compute_score_with_pictures(tiny, tmp_path):
    path = tmp_path / "picture.png"
    noise(100, 60).save(path)
    shown = tiny.score([("what", {"image": path})])[0]
    assert tiny.compute_score([["what", str(path)]], doc_type="image") == pytest.approx(shown)
    both = tiny.compute_score([[str(path), str(path)]], query_type="image", doc_type="image")
    assert both == pytest.approx(tiny.score([({"image": path}, {"image": path})])[0])
    with pytest.raises(InputError, match="doc_type is 'video'"):
        tiny.compute_score([["a", "b"]], doc_type="video")


def test_what_is_cut_is_reported(tiny):
    (result,) = tiny.rank("q", ["words " * 500], max_length=100, max_query_length=40)
    assert result.tokens["total"] <= 100
    assert [(cut.side, cut.part) for cut in result.cut] == [("document", 0)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("q", []), "the list of documents is empty"),
        (("", ["d"]), "the query is empty"),
        (("q", ["d", ""]), "document 1: the document is empty"),
        (("q", ["d", {"text": "  "}]), "document 1: the document is empty"),
        ((None, ["d"]), "the query holds None"),
        (("q", None), "documents is NoneType"),
        (("q", "just a string"), "documents is str"),
        (("q", ["d", None]), "document 1: the document holds None"),
        (("q", ["d", {"image": "no.png"}]), "document 1: no.png does not exist"),
        (("q", ["d", 5]), "document 1: the document holds int"),
        (("q", ["d", [5]]), "document 1: the document holds int"),
        (("q", ["d", {"image": b""}]), "document 1: the picture of 0 bytes is empty"),
        (("q", ["d", Image.new("RGB", (1000, 4))]), "document 1: the PIL image of 1000 x 4"),
    ],
)
def test_bad_input_gets_one_sentence(tiny, arguments, message):
    with pytest.raises(InputError) as caught:
        tiny.rank(*arguments)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_n": 0}, "top_n is 0"),
        ({"top_n": "3"}, "top_n is '3'"),
        ({"on_error": "ignore"}, "on_error is 'ignore'"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        ({"max_length": 3}, "document 0: max_length is 3"),
        ({"max_length": -1}, "max_length is -1"),
        ({"max_length": 10**6}, "max_length is 1000000, but the model has"),
    ],
)
def test_bad_options_get_one_sentence(tiny, options, message):
    with pytest.raises(InputError) as caught:
        tiny.rank("q", ["d"], **options)
    assert str(caught.value).startswith(message)


def test_skipping_keeps_the_rest_and_reports_the_failed(tiny, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG nothing more")
    documents = ["good", None, {"image": broken}, "also good", {"image": "missing.jpg"}]
    ranking = tiny.rank("q", documents, on_error="skip")
    assert sorted(result.index for result in ranking) == [0, 3]
    assert [failed.index for failed in ranking.failed] == [1, 2, 4]
    assert all(failed.document is documents[failed.index] and failed.error for failed in ranking.failed)
    assert {result.index: result.logit for result in ranking} == {
        index: pytest.approx(tiny.rank("q", [documents[index]])[0].logit, abs=1e-5) for index in (0, 3)
    }
    nothing = tiny.rank("q", [None], on_error="skip")
    assert len(nothing) == 0
    assert len(nothing.failed) == 1


@pytest.mark.parametrize("pairs", [None, [], "ab", ["ab"], [("a",)], [("a", "b", "c")], {"a": "b"}])
def test_bad_pairs(tiny, pairs):
    with pytest.raises(InputError, match="pair"):
        tiny.score(pairs)
    with pytest.raises(InputError):
        tiny.score([("q", "d"), ("q", None)])


def test_a_string_that_looks_like_a_picture_is_text_with_a_warning(tiny, tmp_path):
    path = tmp_path / "picture.png"
    noise(60, 60).save(path)
    with pytest.warns(UserWarning, match="is read as text"):
        (result,) = tiny.rank("q", [str(path)])
    assert result.logit == tiny.rank("q", [{"text": str(path)}])[0].logit
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny.rank("what is missing.png", ["see missing.png"])


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("no-such-model", DownloadError, "neither 'm0-nano', nor a directory, nor a hub id"),
        ("./nowhere/at/all", DownloadError, "neither 'm0-nano'"),
        (__file__, DownloadError, "is a file; give the directory"),
    ],
)
def test_unknown_models(name, error, message):
    with pytest.raises(error, match=message):
        Reranker.from_pretrained(name)


def test_bad_types_and_devices(tiny_directory):
    with pytest.raises(InputError, match="dtype is 'float8'"):
        Reranker.from_pretrained(tiny_directory, dtype="float8")
    with pytest.raises(InputError, match="device is 'gpu'"):
        Reranker.from_pretrained(tiny_directory, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="finds no GPU"):
            Reranker.from_pretrained(tiny_directory, device="cuda")


def test_a_model_without_its_tokenizer(tiny_directory, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_directory / name).read_bytes())
    with pytest.raises(CheckpointError, match=r"tokenizer\.json does not exist"):
        Reranker.from_pretrained(tmp_path)


def test_saved_and_loaded_scores_the_same(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    again = Reranker.from_pretrained(tmp_path, dtype="float32")
    assert again.score([("q", MIXED[3])]) == tiny.score([("q", MIXED[3])])


def test_adapters_at_load_and_at_save(tiny_directory, tmp_path):
    reranker = Reranker.from_pretrained(tiny_directory, dtype="float32")
    plain = reranker.score([("q", "d")])
    reranker.adapters.add("mine", LoRAConfig(r=2, modules_to_save=("score",)))
    for parameter in reranker.adapters.parameters():
        parameter.data += 0.05
    adapted = reranker.score([("q", "d")])
    assert adapted != plain
    with pytest.raises(AdapterError, match="'mine' is active"):
        reranker.save_pretrained(tmp_path / "merged")
    reranker.adapters.save(tmp_path / "adapter")
    assert (
        Reranker.from_pretrained(tiny_directory, dtype="float32", adapter=tmp_path / "adapter").score([("q", "d")]) == adapted
    )
    reranker.adapters.merge()
    reranker.save_pretrained(tmp_path / "merged")
    assert Reranker.from_pretrained(tmp_path / "merged", dtype="float32").score([("q", "d")]) == pytest.approx(
        adapted, abs=1e-6
    )


def test_damaged_weights_never_give_a_score(tiny_directory):
    reranker = Reranker.from_pretrained(tiny_directory, dtype="float32")
    reranker.model.decoder.norm.weight.data[0] = float("nan")
    with pytest.raises(M0Error, match="not a number"):
        reranker.rank("q", ["d"])


def test_picture_limits(tiny_directory):
    reranker = Reranker.from_pretrained(tiny_directory, max_pixels=56 * 56, max_image_pixels=5000)
    assert reranker.encode("q", noise(70, 70)).pictures[0].grid == (4, 4)
    with pytest.raises(ImageError, match="raise max_image_pixels"):
        reranker.encode("q", noise(100, 70))


content = strategies.one_of(
    strategies.text(max_size=40),
    strategies.tuples(strategies.integers(20, 120), strategies.integers(20, 120)),
    strategies.lists(
        strategies.one_of(
            strategies.text(max_size=20), strategies.tuples(strategies.integers(20, 90), strategies.integers(20, 90))
        ),
        min_size=1,
        max_size=3,
    ),
)


def shown(value):
    if isinstance(value, list):
        return [shown(item) for item in value]
    return noise(*value) if isinstance(value, tuple) else value


@given(query=content, documents=strategies.lists(content, min_size=1, max_size=5), max_length=strategies.integers(20, 300))
@settings(max_examples=60, deadline=None)
def test_any_ranking_is_whole_and_packed_equals_single(tiny, query, documents, max_length):
    documents = [shown(document) for document in documents]
    query = shown(query)
    try:
        ranking = tiny.rank(query, documents, on_error="skip", max_length=max_length)
    except InputError as error:
        assert "query is empty" in str(error)
        return
    assert sorted([r.index for r in ranking] + [f.index for f in ranking.failed]) == list(range(len(documents)))
    for result in random.Random(0).sample(list(ranking), min(2, len(ranking))):
        alone = tiny.rank(query, [result.document], max_length=max_length)[0]
        assert alone.logit == pytest.approx(result.logit, abs=1e-5)
        assert alone.cut == result.cut


def test_one_pair_may_have_a_picture(tiny):
    picture = noise(60, 60)
    alone = tiny.compute_score(["q", picture], doc_type="image")
    assert isinstance(alone, float)
    assert alone == pytest.approx(tiny.score([("q", picture)])[0], abs=1e-6)
    assert tiny.compute_score(["q", "d"], max_length=None) == tiny.compute_score([["q", "d"]])


def test_a_length_beyond_the_model_is_an_argument_not_a_document(tiny):
    with pytest.raises(InputError, match="positions"):
        tiny.rank("q", ["a", "b"], max_length=10**6, on_error="skip")


@pytest.mark.parametrize("device", ["meta", "xpu", "hpu", "vulkan", "nonsense"])
def test_devices_that_are_not_there(tiny_directory, device):
    with pytest.raises(InputError, match="device is"):
        Reranker.from_pretrained(tiny_directory, device=device)


def test_saving_in_a_type_by_name_keeps_the_picture_limits(tiny_directory, tmp_path):
    reranker = Reranker.from_pretrained(tiny_directory, max_pixels=12544)
    reranker.save_pretrained(tmp_path, dtype="bfloat16")
    assert {tensor.type for tensor in list_tensors(tmp_path)} == {"BF16"}
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["max_pixels"] == 12544
    assert Reranker.from_pretrained(tmp_path).image_settings.max_pixels == 12544
    with pytest.raises(InputError, match="dtype is"):
        reranker.save_pretrained(tmp_path, dtype=torch.int8)


@pytest.mark.parametrize(
    ("written", "limits"),
    [
        ({"min_pixels": 3136, "max_pixels": 12845056}, (3136, 602112)),  # the released file; the vendor's code asks for less
        ({"size": {"shortest_edge": 784, "longest_edge": 78400}}, (784, 78400)),
        ({}, (3136, 602112)),
    ],
)
def test_picture_limits_come_with_the_checkpoint(tiny_directory, tmp_path, written, limits):
    shutil.copytree(tiny_directory, tmp_path / "copy")
    (tmp_path / "copy" / "preprocessor_config.json").write_text(json.dumps(written))
    settings = Reranker.from_pretrained(tmp_path / "copy").image_settings
    assert (settings.min_pixels, settings.max_pixels) == limits


@pytest.mark.parametrize("text", ["[]", "{", '{"min_pixels": -1}', '{"max_pixels": "many"}'])
def test_unreadable_picture_limits(tiny_directory, tmp_path, text):
    shutil.copytree(tiny_directory, tmp_path / "copy")
    (tmp_path / "copy" / "preprocessor_config.json").write_text(text)
    with pytest.raises(CheckpointError, match="preprocessor_config"):
        Reranker.from_pretrained(tmp_path / "copy")
