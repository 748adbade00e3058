"""The ready experiments, each against what it must give by arithmetic."""

import pytest
import torch

from m0 import Reranker
from m0.errors import InputError, MissingExtraError
from m0.interp import (
    activation_patching,
    agreement,
    attention_knockout,
    attribution_patching,
    direct_logit_attribution,
    document,
    everything,
    forward,
    head_ablation,
    head_roles,
    path_patching,
    query,
    resample,
    scale,
    score_lens,
    score_token,
    tokens,
    zero,
)
from m0.interp.edits import add, mean
from m0.interp.grid import Axis, Grid, ranks
from tests.conftest import noise

CLEAN = ("red heart", "A heart that is red.")
CORRUPTED = ("red heart", "A table that is red.")
PICTURES = ("the question", ["text", noise(84, 84, 1)])


@pytest.fixture(scope="module")
def double(tiny_directory):
    return Reranker.from_pretrained(tiny_directory, dtype="float64")


@pytest.fixture(scope="module")
def pair(tiny):
    """Two prompts of as many tokens with different logits."""
    clean, corrupted = tiny.encode(*CLEAN), tiny.encode(*CORRUPTED)
    assert len(clean) == len(corrupted)
    return clean, corrupted


@pytest.mark.parametrize(
    "tap",
    [
        "decoder.embeddings",
        "decoder.layers.2.residual.after",
        *(f"decoder.layers.{i}.residual.{place}" for i in range(3) for place in ("before", "between")),
    ],
)
def test_patching_everything_gives_the_clean_logit(tiny, pair, tap):
    grid = activation_patching(tiny, *pair, taps=tap, positions={"all": everything, "where they agree": tokens(0)})
    recovered = grid.notes["corrupted"] + grid.values[0, 0] * (grid.notes["clean"] - grid.notes["corrupted"])
    assert float(recovered) == pytest.approx(grid.notes["clean"], abs=1e-6)
    assert grid.values[0, 1].abs() < 1e-4  # a sequence's place in the batch may change its last bit
    assert grid.notes["clean"] == pytest.approx(tiny.logits([CLEAN])[0], abs=1e-6)


def test_patching_finds_where_the_prompts_differ(tiny, pair):
    clean, corrupted = pair
    grid = activation_patching(tiny, clean, corrupted)
    (different,) = (clean.token_ids != corrupted.token_ids).nonzero().flatten().tolist()
    first = grid.values[0]
    assert float(first[different]) == pytest.approx(1.0, abs=1e-3)
    others = [i for i in range(len(clean)) if i != different]
    assert first[others].abs().max() < 1e-4  # a sequence's place in the batch may change its last bit


def test_words_are_looked_up_in_the_clean_prompt(tiny, pair):
    grid = activation_patching(tiny, *pair, positions={"word": document.words("heart")})
    fast = attribution_patching(tiny, *pair, positions={"word": document.words("heart")})
    assert grid.axes == fast.axes
    assert float(grid.values[0, 0]) == pytest.approx(1.0, abs=1e-3)


def test_pictures_are_looked_at_once(tiny, monkeypatch):
    seen = []
    plain = tiny.model.vision.forward
    monkeypatch.setattr(tiny.model.vision, "forward", lambda patches, grids: seen.append(len(grids)) or plain(patches, grids))
    head_ablation(tiny, [PICTURES])
    attention_knockout(tiny, PICTURES, window=1)
    assert sum(seen) == 2


def test_many_variants_at_once_are_each_alone(tiny, pair):
    together = activation_patching(tiny, *pair, taps="decoder.layers.*.attention.z")
    alone = activation_patching(tiny, *pair, taps="decoder.layers.*.attention.z", batch_tokens=1)
    torch.testing.assert_close(together.values, alone.values, atol=2e-3, rtol=0)
    assert together.values.shape == (12, 1)


def test_attribution_patching_is_the_derivative(double):
    """Against finite differences of the corrupted run's logit, towards the clean run's activation."""
    clean, corrupted = double.encode(*CLEAN), double.encode(*CORRUPTED)
    name = "decoder.layers.1.mlp.out"
    found = attribution_patching(double, clean, corrupted, taps=name, positions={"q": query, "d": document})
    with double.record(name, every_token=True) as cache:
        forward(double, [clean, corrupted])
    step = 1e-5 * (cache[name][0] - cache[name][1]).detach()
    for column, where in (("q", query), ("d", document)):
        rows = where(clean)
        logits = []
        for sign in (1, -1):
            with double.edit({name: add(sign * step[rows])}, at=where, every_token=True), torch.no_grad():
                logits.append(float(forward(double, [corrupted])[0]))
        slope = (logits[0] - logits[1]) / 2e-5
        assert found[name.removeprefix("decoder."), column] == pytest.approx(
            slope / (found.notes["clean"] - found.notes["corrupted"]), rel=1e-4
        )


def test_attribution_patching_beside_activation_patching(tiny, pair):
    exact = activation_patching(tiny, *pair, taps="decoder.layers.*.mlp.out")
    fast = attribution_patching(tiny, *pair, taps="decoder.layers.*.mlp.out")
    found = agreement(exact, fast)
    assert found.pearson > 0.8
    assert "Pearson" in str(found)
    reported = attribution_patching(tiny, *pair, taps="decoder.layers.*.mlp.out", exact=exact)
    assert reported.notes["pearson"] == pytest.approx(found.pearson)
    assert "pearson" in str(reported)
    with pytest.raises(InputError, match="different axes"):
        attribution_patching(tiny, *pair, exact=exact)
    patterns = attribution_patching(tiny, *pair, taps="decoder.layers.*.attention.pattern")
    assert torch.isfinite(patterns.values).all()
    with pytest.raises(InputError, match="different axes"):
        agreement(exact, patterns)


def test_a_path_to_the_logit_is_the_direct_effect(double):
    """With every other head frozen and the MLPs' answer left out, only the direct path is left; with receivers that come before
    the sender, nothing."""
    clean, corrupted = double.encode(*CLEAN), double.encode(*CORRUPTED)
    grid = path_patching(double, clean, corrupted, senders=[(2, 1), (0, 0)])
    z = "decoder.layers.2.attention.z"
    with double.record(z, every_token=True) as cache, torch.inference_mode():
        forward(double, [clean])
    with (
        double.edit({z: lambda x: cache[z].tensor[:, [1]]}, at=everything, heads=[1], every_token=True),
        torch.inference_mode(),
    ):
        logit = float(forward(double, [corrupted])[0])
    expected = (logit - grid.notes["corrupted"]) / (grid.notes["clean"] - grid.notes["corrupted"])
    assert grid["2.1"] == pytest.approx(expected, abs=1e-9)
    before = path_patching(double, clean, corrupted, receivers=[(1, 0, "query")], senders=[(1, 0), (2, 3)])
    assert before.values.abs().max() < 1e-9
    after = path_patching(double, clean, corrupted, receivers=[(2, 0, "value"), (2, 1, "value")], senders=[(0, 0)])
    assert after.values.abs().max() > 1e-9


def test_ablation_of_a_head(tiny):
    pairs = [CLEAN, PICTURES]
    grid = head_ablation(tiny, pairs)
    plain = tiny.logits(pairs)
    with tiny.edit({"decoder.layers.1.attention.z": zero}, heads=[3]):
        without = tiny.logits(pairs)
    expected = sum(b - a for a, b in zip(plain, without, strict=True)) / 2
    assert grid["1", "3"] == pytest.approx(expected, abs=1e-6)
    for how in ("mean", "resample"):
        other = head_ablation(tiny, pairs, how=how, reference=[CORRUPTED])
        assert torch.isfinite(other.values).all()
        assert not torch.equal(other.values, grid.values)
    with pytest.raises(InputError, match="how is"):
        head_ablation(tiny, pairs, how="noise")
    with pytest.raises(InputError, match="empty"):
        head_ablation(tiny, [])


def test_ready_edits():
    x = torch.arange(6.0).view(3, 2)
    assert torch.equal(scale(2.0)(x), 2 * x)
    assert torch.equal(mean(x)(x), torch.tensor([[2.0, 3.0]]).expand(3, 2))
    drawn = resample(x, seed=1)(x)
    assert all(any(torch.equal(row, other) for other in x) for row in drawn)
    assert torch.equal(drawn, resample(x, seed=1)(x))


def test_knockout_is_what_masking_gives(tiny):
    grid = attention_knockout(tiny, PICTURES)
    assert "query -> picture" in grid.axes[0].labels
    plain = tiny.logits([PICTURES])[0]
    cut = {"decoder.layers.*.attention.scores": lambda x: torch.full_like(x, -torch.inf)}
    with tiny.edit(cut, at=query.all, to=document.all):
        masked = tiny.logits([PICTURES])[0]
    assert grid["query -> document", "0-2"] == pytest.approx(masked - plain, abs=1e-6)
    layers = attention_knockout(tiny, PICTURES, window=1)
    assert layers.values.shape == (len(grid.axes[0].labels), 3)
    # The document never looks at the query, so there is nothing to cut; every token still sees itself.
    never = attention_knockout(tiny, CLEAN, {"never": (document.all, query.all), "all": (everything, everything)})
    assert never.values[0].abs().max() < 1e-6
    assert torch.isfinite(never.values).all()
    for window in (0, 4, True):
        with pytest.raises(InputError, match="window"):
            attention_knockout(tiny, CLEAN, window=window)


def test_the_lens_ends_at_the_logit(tiny):
    grid = score_lens(tiny, CLEAN)
    assert grid.values.shape == (4, 1)
    assert float(grid.values[-1, 0]) == pytest.approx(tiny.logits([CLEAN])[0], abs=1e-6)
    words = score_lens(tiny, CLEAN, where=query.words("heart") | score_token)
    assert float(words.values[-1, -1]) == pytest.approx(tiny.logits([CLEAN])[0], abs=1e-6)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float64", 1e-10)])
@pytest.mark.parametrize("pair", [CLEAN, PICTURES])
def test_direct_attribution_adds_up(tiny_directory, dtype, bound, pair):
    reranker = Reranker.from_pretrained(tiny_directory, dtype=dtype)
    found = direct_logit_attribution(reranker, pair)
    assert found.logit == pytest.approx(reranker.logits([pair])[0], abs=1e-6)
    assert abs(found.total - found.logit) <= bound * found.magnitude
    assert found.heads.shape == (3, 4)
    assert "head 3" in str(found)


def test_direct_attribution_with_an_adapter_on_the_head(tiny_directory):
    from m0 import LoRAConfig

    reranker = Reranker.from_pretrained(tiny_directory, dtype="float32")
    reranker.adapters.add("head", LoRAConfig(r=4, target_modules=("q_proj", "score.0")))
    for parameter in reranker.adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    found = direct_logit_attribution(reranker, CLEAN)
    assert abs(found.total - found.logit) <= 1e-5 * found.magnitude


def test_a_term_left_out_is_missed(tiny):
    found = direct_logit_attribution(tiny, CLEAN)
    for left_out in (found.embedding, float(found.heads[1, 2]), float(found.mlps[2]), found.bias):
        assert abs(found.total - left_out - found.logit) > 1e-5 * found.magnitude


def test_roles_of_heads(tiny):
    found = head_roles(tiny, [CLEAN, PICTURES])
    with tiny.record("decoder.layers.1.attention.pattern", every_token=True) as cache:
        tiny.logits([CLEAN])
    pattern = cache["decoder.layers.1.attention.pattern"]
    to_query = pattern.at(score_token, to=query.all).sum(-1)[:, 0]
    with tiny.record("decoder.layers.1.attention.pattern", every_token=True) as other:
        tiny.logits([PICTURES])
    to_query = (to_query + other["decoder.layers.1.attention.pattern"].at(score_token, to=query.all).sum(-1)[:, 0]) / 2
    torch.testing.assert_close(found.score_to_query.values[1], to_query.double(), atol=1e-6, rtol=0)
    assert found.same_word.notes["pairs"] == 1
    assert found.query_to_picture.notes["pairs"] == 1
    assert head_roles(tiny, [("q", "d")]).query_to_picture.values.isnan().all()
    with pytest.raises(InputError, match="empty"):
        head_roles(tiny, [])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda r: activation_patching(r, CLEAN, ("red heart", "Short.")), "tokens"),
        (lambda r: activation_patching(r, CLEAN, CLEAN), "same logit"),
        (lambda r: activation_patching(r, CLEAN, CORRUPTED, taps="vision.*"), "decoder's"),
        (lambda r: activation_patching(r, CLEAN, CORRUPTED, taps="decoder.embeddings", by_head=True), "no heads"),
        (lambda r: path_patching(r, CLEAN, CORRUPTED, receivers=[(9, 0, "query")]), "receiver"),
        (lambda r: path_patching(r, CLEAN, CORRUPTED, receivers=[(1, 9, "query")]), "head 9"),
        (lambda r: path_patching(r, CLEAN, CORRUPTED, senders=[(0, 7)]), "sender"),
        (lambda r: path_patching(r, CLEAN, CORRUPTED, receivers=[(1, 0)]), "receiver"),
        (lambda r: activation_patching(r, CLEAN, CORRUPTED, taps="head.hidden"), "decoder's"),
        (lambda r: head_ablation(r, CLEAN), "pair 0 is str"),
    ],
)
def test_wrong_experiments(tiny, call, words):
    with pytest.raises(InputError, match=words):
        call(tiny)


def test_grids_print_and_plot(tmp_path):
    grid = Grid("title", (Axis("row", ["a", "b"]), Axis("column", ["x", "y", "z"])), torch.arange(6.0).double().view(2, 3))
    assert grid["b", "x"] == 3
    assert grid.top(1) == [(("b", "z"), 5.0)]
    assert "title" in str(grid)
    wide = Grid("wide", (Axis("row", ["a"]), Axis("column", [str(i) for i in range(40)])), torch.randn(1, 40).double())
    assert "largest of 1 x 40" in str(wide)
    with pytest.raises(InputError, match="has no"):
        grid["c", "x"]
    with pytest.raises(InputError, match="labels are given"):
        grid["a"]
    pytest.importorskip("matplotlib")
    grid.plot(tmp_path / "grid.png")
    assert (tmp_path / "grid.png").stat().st_size > 1000


def test_plots_say_what_they_need(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match="matplotlib"):
        Grid("t", (Axis("row", ["a"]),), torch.zeros(1)).plot()


def test_ranks_share_ties():
    assert ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0.0, 2.5, 1.0]
