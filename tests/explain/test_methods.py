"""Every method against what it promises: sums that close, and an independent computation."""

import itertools

import numpy as np
import pytest
import torch

from m0 import Reranker
from m0.errors import InputError
from m0.explain import METHODS, explain
from m0.explain.flow import compute_inputs, compute_logits
from m0.explain.gradient import compute_baseline, integrated_gradients
from m0.explain.perturb import MaskedModel, find_players, shapley
from m0.explain.rules import attnlrp_rules, frozen_rules
from m0.interp import document, forward, query
from tests.conftest import noise

TEXT = ("red heart", "A heart that is red, and a dog.")
MIXED = ("the question", ["some text", noise(84, 112, 1), "more of it"])
PICTURES = ({"image": noise(64, 64, 4)}, {"image": noise(112, 84, 3)})
PAIRS = {"text": TEXT, "mixed": MIXED, "pictures": PICTURES}
LEDGERED = ["attnlrp", "frozen_gradient"]


@pytest.fixture(scope="module")
def double(tiny_directory):
    return Reranker.from_pretrained(tiny_directory, dtype="float64")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", PAIRS)
def test_every_method_explains_every_kind_of_pair(tiny, method, kind):
    options = {"nodes": 4} if method == "integrated_gradients" else {"samples": 2} if method == "smooth_grad" else {}
    options |= {"permutations": 2} if method == "shapley" else {}
    found = tiny.explain(*PAIRS[kind], method=method, **options)
    assert found.tokens.shape == (len(found.encoding),)
    assert torch.isfinite(found.tokens).all()
    assert found.tokens.abs().sum() > 0
    assert found.logit == pytest.approx(tiny.logits([PAIRS[kind]])[0], abs=1e-5)
    assert found.score == pytest.approx(tiny.score([PAIRS[kind]])[0], abs=1e-5)
    shown = sum(word.relevance for word in found.words) + sum(picture.relevance for picture in found.pictures)
    template = sum(
        v for v, origin in zip(found.tokens.tolist(), found.encoding.origins, strict=True) if origin.kind == "template"
    )
    assert shown + template == pytest.approx(float(found.tokens.sum()), abs=1e-9)
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert found.signed or (found.tokens >= 0).all()
    # Looking leaves nothing behind.
    assert not tiny.sessions
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny.model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in tiny.model.parameters())


@pytest.mark.parametrize("method", LEDGERED)
@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float64", 1e-10)])
def test_the_ledger_closes(tiny, double, method, kind, pixels, dtype, bound):
    reranker = tiny if dtype == "float32" else double
    found = reranker.explain(*PAIRS[kind], method=method, pixels=pixels)
    parts = [value for name, value in found.ledger.items() if name not in ("logit", "gap")]
    terms = float(found.tokens.abs().sum()) + sum(abs(part) for part in parts[1:])
    assert abs(found.ledger["gap"]) <= bound * terms
    assert found.ledger["logit"] - sum(parts) == pytest.approx(found.ledger["gap"], abs=1e-12)


@pytest.mark.parametrize("kind", PAIRS)
def test_plain_gradients_and_inputs_alone_do_not_add_up(tiny, kind):
    """The control of the test above: it can fail."""
    plain = tiny.explain(*PAIRS[kind], method="gradient_input")
    assert abs(plain.ledger["gap"]) > 1e-3 * float(plain.tokens.abs().sum())
    lrp = tiny.explain(*PAIRS[kind], method="attnlrp")
    assert abs(lrp.ledger["logit"] - lrp.ledger["inputs"]) > 1e-3 * float(lrp.tokens.abs().sum())


@pytest.mark.parametrize("rules", [attnlrp_rules, frozen_rules])
def test_rules_change_derivatives_not_values(tiny, rules):
    plain = tiny.logits(list(PAIRS.values()))
    with rules(tiny.model):
        assert tiny.logits(list(PAIRS.values())) == pytest.approx(plain, abs=1e-5)
    assert tiny.logits(list(PAIRS.values())) == plain


def test_rules_in_closed_form(double):
    """Each rule by itself on numbers, against the relevance it stands for."""
    generator = torch.Generator().manual_seed(0)
    layer = double.model.decoder.layers[0]
    x = torch.randn(5, 64, generator=generator, dtype=torch.float64, requires_grad=True)
    start = torch.randn(5, 64, generator=generator, dtype=torch.float64)
    with attnlrp_rules(double.model):
        normed = layer.input_layernorm(x)
        (by_norm,) = torch.autograd.grad(normed, x, start)
        # The norm passes relevance on unchanged, token by token and number by number.
        torch.testing.assert_close(x * by_norm, normed * start)
        gate, up = layer.mlp.gate_proj(x), layer.mlp.up_proj(x)
        hidden = torch.nn.functional.silu(gate) * up
        out = layer.mlp(x)
        (by_mlp,) = torch.autograd.grad(out, x, start)
    # down: epsilon rule without epsilon; the product: half to each factor; silu: all of it to its input; gate, up: as down.
    at_hidden = hidden * (start @ layer.mlp.down_proj.weight)
    to_gate = ((at_hidden / 2 / gate) @ layer.mlp.gate_proj.weight) * x
    to_up = ((at_hidden / 2 / up) @ layer.mlp.up_proj.weight) * x
    torch.testing.assert_close(x * by_mlp, to_gate + to_up)
    block = double.model.vision.blocks[0]
    y = torch.randn(4, 64, generator=generator, dtype=torch.float64, requires_grad=True)
    with attnlrp_rules(double.model):
        out = block.mlp(y)
        (by_tower,) = torch.autograd.grad(out.sum(), y)
    inner = block.mlp.fc1(y)
    share = torch.sigmoid(1.702 * inner) * block.mlp.fc2.weight.sum(0)
    torch.testing.assert_close(y * by_tower, (share @ block.mlp.fc1.weight) * y)


def test_attention_rule_in_closed_form():
    """Pattern times value: half to the value by its share, half through the softmax (Achtibat et al. 2024)."""
    from m0.explain.rules import halve_derivative

    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    value = torch.randn(4, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    start = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    pattern = scores.softmax(-1)
    out = halve_derivative(pattern) @ halve_derivative(value)
    by_scores, by_value, by_pattern = torch.autograd.grad(out, [scores, value, pattern], start)
    relevance = out * start
    terms = pattern[:, :, None] * value[None, :, :] * (relevance / (2 * out))[:, None, :]
    torch.testing.assert_close(pattern * by_pattern, terms.sum(2))
    torch.testing.assert_close(value * by_value, terms.sum(0))
    at_pattern = terms.sum(2)
    torch.testing.assert_close(scores * by_scores, scores * (at_pattern - pattern * at_pattern.sum(-1, keepdim=True)))


def test_integrated_gradients_are_complete(double):
    for pair in PAIRS.values():
        for pixels in (False, True):
            found = double.explain(*pair, method="integrated_gradients", nodes=128, pixels=pixels)
            difference = found.ledger["logit"] - found.ledger["baseline"]
            assert abs(found.ledger["gap"]) <= 0.05 * abs(difference)
            assert found.ledger["inputs"] + found.ledger["gap"] == pytest.approx(difference, abs=1e-12)


def test_integrated_gradients_by_an_independent_sum(double):
    """The same nodes, weights and baseline in a plain loop."""
    encoding, reranker = double.encode(*TEXT), double
    start, baseline = compute_inputs(reranker, encoding).embeddings, compute_baseline(reranker, encoding).embeddings
    points, weights = np.polynomial.legendre.leggauss(7)
    total = torch.zeros_like(start)
    for point, weight in zip(points, weights, strict=True):
        x = (baseline + (point + 1) / 2 * (start - baseline)).requires_grad_()
        compute_logits(reranker, encoding, x[None])[0].backward(inputs=[x])
        total += weight / 2 * x.grad
    expected = ((start - baseline) * total).sum(-1)
    found = integrated_gradients(double, encoding, nodes=7)
    torch.testing.assert_close(found.tokens, expected.detach(), atol=1e-12, rtol=1e-9)


def test_integrated_gradients_equal_captums(tiny):
    captum = pytest.importorskip("captum.attr")
    encoding, reranker = tiny.encode(*TEXT), tiny
    start, baseline = compute_inputs(reranker, encoding).embeddings, compute_baseline(reranker, encoding).embeddings
    method = captum.IntegratedGradients(lambda x: compute_logits(reranker, encoding, x))
    theirs = method.attribute(start[None], baseline[None], n_steps=32, method="gausslegendre").sum(-1)[0]
    ours = integrated_gradients(tiny, encoding, nodes=32)
    torch.testing.assert_close(ours.tokens.float(), theirs.float(), atol=1e-5, rtol=0)


def test_more_nodes_are_taken_until_the_gap_is_small(tiny):
    few = tiny.explain(*TEXT, method="integrated_gradients", gap=10.0)
    assert few.ledger["nodes"] == 32
    assert not any("accounted" in note for note in few.notes)
    told = tiny.explain(*TEXT, method="integrated_gradients", gap=0.0)
    assert told.ledger["nodes"] == 256
    assert any("not accounted for" in note for note in told.notes)


def test_the_baseline_says_nothing(tiny):
    encoding = tiny.encode(*MIXED)
    start, baseline = compute_inputs(tiny, encoding), compute_baseline(tiny, encoding)
    template = [i for i, origin in enumerate(encoding.origins) if origin.kind == "template"]
    texts = [i for i, origin in enumerate(encoding.origins) if origin.kind == "text"]
    torch.testing.assert_close(baseline.embeddings[template], start.embeddings[template])
    assert (baseline.embeddings[texts] == baseline.embeddings[texts[0]]).all()
    assert not torch.equal(baseline.embeddings[texts], start.embeddings[texts])
    assert baseline.patches.std() < start.patches.std()
    (full_stop,) = tiny.prompt.tokenizer.encode(".", add_special_tokens=False).ids
    torch.testing.assert_close(baseline.embeddings[texts[0]], tiny.model.decoder.embed_tokens.weight[full_stop].detach())


def test_gradients_by_finite_differences(double):
    encoding = double.encode(*MIXED)
    found = double.explain(*MIXED, method="gradient_input")
    start = compute_inputs(double, encoding).embeddings
    token = query.all(encoding)[0]
    with torch.no_grad():
        versions = torch.stack([start, start])
        versions[0, token] *= 1 + 1e-6
        versions[1, token] *= 1 - 1e-6
        above, below = compute_logits(double, encoding, versions)
    assert float(found.tokens[token]) == pytest.approx(float(above - below) / 2e-6, rel=1e-5)


def test_pixels_by_finite_differences(double):
    """Through the tower: a picture's pixels scaled a little change the logit as their relevance says."""
    encoding = double.encode(*MIXED)
    found = double.explain(*MIXED, method="gradient_input", pixels=True)
    inputs = compute_inputs(double, encoding)
    with torch.no_grad():
        versions = torch.stack([inputs.patches, inputs.patches])
        versions[0, 4:8] *= 1 + 1e-6  # the four patches of the second visual token
        versions[1, 4:8] *= 1 - 1e-6
        text = inputs.embeddings.expand(2, -1, -1)
        above, below = compute_logits(double, encoding, text, versions)
    assert float(found.pictures[0].cells[0, 1]) == pytest.approx(float(above - below) / 2e-6, rel=1e-5)
    pixel_relevance = found.pictures[0].pixel_relevance
    assert float(pixel_relevance[:28, 28:56].sum()) == pytest.approx(float(found.pictures[0].cells[0, 1]), rel=1e-9)


def test_chefer_rule_by_hand(tiny):
    """R <- R + mean(positive part of gradient x attention) R, in a plain loop over the recorded patterns."""
    from m0.interp import forward

    encoding = tiny.encode(*TEXT)
    with tiny.record("decoder.layers.*.attention.pattern", every_token=True) as cache:
        logit = forward(tiny, [encoding])[0]
        patterns = [cache[name].tensor for name in cache.names]
        gradients = torch.autograd.grad(logit, patterns)
    total = torch.eye(len(encoding))
    for pattern, gradient in zip(patterns, gradients, strict=True):
        total = total + (pattern * gradient).clamp_min(0).mean(0) @ total
    expected = (total - torch.eye(len(encoding)))[-1]
    found = tiny.explain(*TEXT, method="attention_gradient")
    torch.testing.assert_close(found.tokens.float(), expected.detach(), atol=1e-6, rtol=1e-4)


def test_attention_rows(tiny):
    with tiny.record("decoder.layers.*.attention.pattern") as cache:
        tiny.logits([TEXT])
    rows = [cache[name].tensor[:, -1] for name in cache.names]
    torch.testing.assert_close(tiny.explain(*TEXT, method="attention").tokens, torch.stack(rows).double().mean((0, 1)))
    one = tiny.explain(*TEXT, method="attention", layer=1, head=2)
    torch.testing.assert_close(one.tokens, rows[1][2].double())
    assert float(tiny.explain(*TEXT, method="rollout").tokens.sum()) == pytest.approx(1.0)


def test_occlusion_is_what_leaving_out_does(tiny):
    encoding = tiny.encode(*TEXT)
    found = explain(tiny, encoding, "occlusion")
    tokens = document.words("dog")(encoding)
    baseline = compute_baseline(tiny, encoding).embeddings
    start = compute_inputs(tiny, encoding).embeddings.clone()
    start[tokens] = baseline[tokens]
    with torch.no_grad():
        without = float(compute_logits(tiny, encoding, start[None])[0])
    (word,) = [word for word in found.words if word.text == "dog"]
    assert word.relevance == pytest.approx(found.logit - without, abs=1e-5)


def test_occlusion_of_a_region_goes_through_the_tower(tiny):
    encoding = tiny.encode(*PICTURES)
    found = explain(tiny, encoding, "occlusion")
    picture = encoding.pictures[0]
    pixels = np.array(picture.pixels)
    pixels[28:56, 56:84] = 127
    without = tiny.logits([(PICTURES[0], {"image": pixels})])[0]
    assert float(found.pictures[0].cells[1, 2]) == pytest.approx(found.logit - without, abs=1e-5)


def test_pairs_left_out_together(tiny):
    encoding = tiny.encode(*TEXT)
    found = explain(tiny, encoding, "occlusion", matrix=True)
    players = find_players(encoding)
    game = MaskedModel(tiny, encoding, players)
    q = next(n for n, player in enumerate(players) if player.name == "heart" and player.side == "query")
    d = next(n for n, player in enumerate(players) if player.name == "heart" and player.side == "document")
    whole, a, b, both = game.logits([[], [q], [d], [q, d]]).tolist()
    asked, shown, values = found.interaction.by_word(encoding)
    row = [span.text for span in asked].index("heart")
    column = [span.text for span in shown].index("heart")
    assert float(values[row, column]) == pytest.approx(whole - a - b + both, abs=1e-6)


def test_shapley_values_by_all_orders(tiny):
    pair = ("red heart", "a dog")
    encoding = tiny.encode(*pair)
    players = find_players(encoding)
    game = MaskedModel(tiny, encoding, players)
    exact = torch.zeros(len(players), dtype=torch.float64)
    orders = list(itertools.permutations(range(len(players))))
    for order in orders:
        values = game.logits([order[place:] for place in range(len(order) + 1)])
        exact[list(order)] += values.diff() / len(orders)
    found = shapley(tiny, encoding, permutations=400)
    by_name = [word.relevance for word in found.words]
    spans = [(word.side, word.text) for word in found.words]
    for player, value in zip(players, exact.tolist(), strict=True):
        assert by_name[spans.index((player.side, player.name))] == pytest.approx(value, abs=0.05 * float(exact.abs().max()))
    few = shapley(tiny, encoding, permutations=2)
    assert few.ledger["gap"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("guess", {}, "method is"),
        ("attention", {"layer": 3}, "layer is"),
        ("attention", {"head": 9}, "head is"),
        ("smooth_grad", {"samples": 0}, "samples"),
        ("occlusion", {"unit": "page"}, "unit is"),
        ("shapley", {"permutations": 3}, "permutations"),
        ("attnlrp", {"depth": 3}, "depth"),
        ("integrated_gradients", {"nodes": 0}, "nodes"),
        ("smooth_grad", {"samples": 2.0}, "samples"),
        ("shapley", {"permutations": 4.0}, "permutations"),
        ("attention", {"layer": "1"}, "layer is"),
    ],
)
def test_wrong_requests(tiny, method, options, words):
    with pytest.raises(InputError, match=words):
        tiny.explain(*TEXT, method=method, **options)


def test_the_whole_attention_layer_in_closed_form(double):
    """One layer with its hooks: relevance of the input is what flows through value, query and key by the rules, each from its own
    formula, with rotation and grouped heads."""
    from m0.explain.flow import record_patterns
    from m0.explain.rules import halve_derivative
    from m0.model.attention import Packing
    from m0.model.rotary import decoder_rotation, rotate

    model, encoding = double.model, double.encode("a", "b c")
    config, attention = model.config.decoder, model.decoder.layers[0].self_attn
    generator = torch.Generator().manual_seed(2)
    size = len(encoding)
    x = torch.randn(size, 64, generator=generator, dtype=torch.float64, requires_grad=True)
    start = torch.randn(size, 64, generator=generator, dtype=torch.float64)
    rotation = decoder_rotation(encoding.positions, config.head_dim, config.rope_theta, config.mrope_section, x.dtype)
    with attnlrp_rules(model), record_patterns(model, encoding, lambda _, p: halve_derivative(p)):
        out = attention(x, rotation, Packing([size], causal=True), False)
        (found,) = torch.autograd.grad(out, x, start)
    with torch.no_grad():
        q, k, v = (layer(x).unflatten(-1, (-1, 16)) for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
        turned_q, turned_k = rotate(q, rotation), rotate(k, rotation).repeat_interleave(2, 1)
        values = v.repeat_interleave(2, 1)
        scores = torch.einsum("qhd,khd->hqk", turned_q, turned_k) / 4
        scores = scores.masked_fill(~torch.ones(size, size, dtype=torch.bool).tril(), -torch.inf)
        pattern = scores.softmax(-1)
        at_z = (start @ attention.o_proj.weight).unflatten(-1, (4, 16))  # gradient at each head's output
        by_value = torch.einsum("hqk,qhd->khd", pattern, at_z) / 2
        by_pattern = torch.einsum("qhd,khd->hqk", at_z, values) / 2
        by_scores = pattern * (by_pattern - (pattern * by_pattern).sum(-1, keepdim=True)) / 4
        by_q = torch.einsum("hqk,khd->qhd", by_scores, turned_k) / 2
        by_k = torch.einsum("hqk,qhd->khd", by_scores, turned_q) / 2
        back = (rotation[0], -rotation[1])  # a rotation's transpose turns back

        def grouped(g):
            return g.unflatten(1, (2, 2)).sum(2).flatten(1)

        expected = rotate(by_q, back).flatten(1) @ attention.q_proj.weight
        expected += grouped(rotate(by_k, back)) @ attention.k_proj.weight + grouped(by_value) @ attention.v_proj.weight
    torch.testing.assert_close(found, expected)


def test_explaining_an_edited_model(tiny):
    """Inside an edit the edited model is explained; open recordings keep nothing of it, whatever was scored before."""
    from m0.interp import scale

    plain = tiny.explain(*TEXT)
    with tiny.record("decoder.embeddings") as cache, tiny.edit({"decoder.layers.1.residual.before": scale(1.3)}, at=query):
        edited = tiny.logits([PICTURES, TEXT])[1]
        for method in ("attnlrp", "attention", "occlusion", "integrated_gradients"):
            found = tiny.explain(*TEXT, method=method)
            assert found.logit == pytest.approx(edited, abs=1e-5)
    assert len(cache.encodings) == 2
    assert abs(edited - plain.logit) > 1e-4


def test_a_model_in_sixteen_bits_is_explained_in_float32(tiny_directory, tiny):
    reranker = Reranker.from_pretrained(tiny_directory, dtype="bfloat16")
    found = reranker.explain(*TEXT)
    assert "float32" in found.notes[0]
    assert abs(found.ledger["gap"]) < 1e-5 * float(found.tokens.abs().sum() + 1)
    assert reranker.model.dtype == torch.bfloat16


def test_a_cut_document_says_so(tiny):
    found = tiny.explain("question", "many words " * 50, max_length=40)
    assert "cut" in found.notes[0]


def test_too_many_patterns_are_refused(tiny, monkeypatch):
    from m0.explain import flow

    monkeypatch.setattr(flow, "MAX_PATTERN_BYTES", 1000)
    for method in ("attnlrp", "attention_gradient", "rollout", "attention"):
        with pytest.raises(InputError, match="frozen_gradient, integrated_gradients and occlusion do without them"):
            tiny.explain(*TEXT, method=method)
    assert tiny.explain(*TEXT, method="frozen_gradient").interaction is not None


@pytest.mark.parametrize("pair", [("a red heart of glass", TEXT[1]), PICTURES], ids=["text", "pictures"])
def test_the_interaction_is_the_same_in_pieces_and_left_out_where_it_cannot_fit(tiny, pair):
    whole = tiny.explain(*pair, method="frozen_gradient")
    asked, shown = whole.interaction.values.shape
    row = 4 * tiny.model.config.decoder.num_heads * len(whole.encoding) * 4
    bytes_of_two = 8 * asked * shown + 2 * row
    pieces = tiny.explain(*pair, method="frozen_gradient", matrix_bytes=bytes_of_two)
    assert f"in {-(-asked // 2)} pieces" in pieces.notes[-1]
    torch.testing.assert_close(pieces.interaction.values, whole.interaction.values, atol=1e-7, rtol=1e-5)
    assert torch.equal(pieces.tokens, whole.tokens)
    none = tiny.explain(*pair, method="frozen_gradient", matrix_bytes=8 * asked * shown + row - 1)
    assert none.interaction is None
    assert "left out" in none.notes[-1]
    assert torch.equal(none.tokens, whole.tokens)
    assert not whole.notes
    with pytest.raises(InputError, match="matrix_bytes is 0"):
        tiny.explain(*pair, method="frozen_gradient", matrix_bytes=0)


def test_the_interaction_of_edited_patterns(tiny):
    """An edit of the pattern is in it: where no token of the query looks anywhere but at itself, nothing goes through."""

    def cut(pattern):
        return torch.eye(pattern.shape[-1])[-pattern.shape[-2] :].expand_as(pattern)

    with tiny.edit({"decoder.layers.*.attention.pattern": cut}):
        assert not tiny.explain(*TEXT, method="frozen_gradient").interaction.values.any()
        found = tiny.explain(*TEXT, method="frozen_gradient", matrix_bytes=1000)
        assert found.interaction is None
        assert "left out" in found.notes[-1]
    with tiny.edit({"decoder.layers.0.attention.z": lambda x: 0 * x}):  # what is no pattern goes the usual way
        assert tiny.explain(*TEXT, method="frozen_gradient").interaction.values.any()


@pytest.mark.parametrize("method", ["frozen_gradient", "attnlrp", "attention", "rollout", "attention_gradient"])
def test_without_the_matrix(tiny, method):
    whole, without = (tiny.explain(*TEXT, method=method, matrix=matrix) for matrix in (True, False))
    assert whole.interaction is not None
    assert without.interaction is None
    torch.testing.assert_close(without.tokens, whole.tokens)


def test_words_of_the_matrix_are_sums_over_their_tokens(tiny):
    """By a plain loop, pictures of both sides among them."""
    from m0.interp.words import assign_tokens_to_spans, find_words

    found = tiny.explain([*PICTURES, "two words"], [*PICTURES, "and more words"], method="frozen_gradient")
    asked, shown, values = found.interaction.by_word(found.encoding)
    spans, inner = find_words(found.encoding), found.interaction
    owners = assign_tokens_to_spans(found.encoding, spans)
    for row, one in enumerate(asked):
        for column, other in enumerate(shown):
            total = 0.0
            for i, token in enumerate(inner.query_tokens):
                origin = found.encoding.origins[token]
                mine = spans[owners[token]] == one if owners[token] is not None else one.text == f"picture {2 + origin.part}"
                for j, theirs in enumerate(inner.document_tokens):
                    if mine and owners[theirs] is not None and spans[owners[theirs]] == other:
                        total += float(inner.values[i, j])
            assert float(values[row, column]) == pytest.approx(total, abs=1e-9)


def test_frozen_interaction_against_gradients_by_patterns_put_in(tiny):
    """The same patterns as constants of an edit, and the logit's derivative by each times its value."""
    found = tiny.explain(*TEXT, method="frozen_gradient")
    plain = tiny.explain(*TEXT, method="frozen_gradient", matrix=False)
    torch.testing.assert_close(found.tokens, plain.tokens, atol=1e-6, rtol=1e-4)
    assert plain.interaction is None
    leaves = []

    def hold(pattern):
        leaves.append(pattern.detach().requires_grad_())
        return leaves[-1]

    with (
        torch.enable_grad(),
        frozen_rules(tiny.model),
        tiny.edit({"decoder.layers.*.attention.pattern": hold}, every_token=True),
    ):
        forward(tiny, [found.encoding])[0].backward()
    rows, columns = query.all(found.encoding), document.all(found.encoding)
    # The last layer's queries stand for nothing but the score token's.
    expected = sum((leaf * leaf.grad).sum(0)[rows][:, columns].double() for leaf in leaves[:-1])
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(found.interaction.values, expected.detach(), atol=1e-6, rtol=1e-4)
    tiny.model.zero_grad()


def test_explaining_where_no_gradients_are_wanted(tiny):
    with torch.inference_mode():
        found = tiny.explain(*TEXT)
    torch.testing.assert_close(found.tokens, tiny.explain(*TEXT).tokens)


def test_randomised_weights_randomise_the_explanation(tiny_directory):
    """Adebayo et al. 2018: with other weights in the decoder, the explanation must be another one."""
    from m0.interp.grid import pearson_correlation, ranks
    from tests.conftest import fill_randomly

    pair = ("a heart", " ".join(f"word{i} and thing{i}" for i in range(40)))
    for method in LEDGERED:
        found = []
        for seed in range(8):
            reranker = Reranker.from_pretrained(tiny_directory, dtype="float32")
            before = reranker.explain(*pair, method=method).tokens
            fill_randomly(reranker.model.decoder, seed=99 + seed)
            found.append(pearson_correlation(ranks(before), ranks(reranker.explain(*pair, method=method).tokens)))
        assert sum(map(abs, found)) / len(found) < 0.3, method
