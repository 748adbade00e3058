"""Recording and editing: nothing changes by looking, and what is asked for is what is found."""

import pytest
import torch

from m0 import Cascade, LoRAConfig
from m0.errors import InputError
from m0.interp import all_taps, document, everything, forward, image, query, score_token, zero
from m0.interp.positions import tokens
from m0.model.attention import Attend
from tests.conftest import noise

PAIRS = [
    ("red heart", "A heart that is red, and a dog."),
    ({"image": noise(70, 90, 5)}, ["A mixed one", noise(120, 60, 6), "with two pictures", noise(64, 64, 7)]),
    ("Tokyo 東京", "東京は日本の首都です。"),
    ("x", {"image": noise(90, 90, 8)}),
]
NAMES = [tap.name for tap in all_taps(__import__("tests.conftest", fromlist=["tiny_config"]).tiny_config())]
WATCHED_BY_NAME = ["*", "vision.*"]  # the tower's patterns are given to those alone who ask for the tower
EXPLICIT = [name for name in NAMES if name.endswith((".scores", ".pattern"))]


def same(x):
    return x


@pytest.mark.parametrize("every_token", [False, True])
def test_recording_all_but_patterns_changes_no_bit(tiny, every_token):
    plain = tiny.logits(PAIRS)
    with tiny.record(*[name for name in NAMES if name not in EXPLICIT], every_token=every_token) as cache:
        watched = tiny.logits(PAIRS)
    if every_token:  # the last layer is computed for all tokens: another product of matrices
        assert watched == pytest.approx(plain, abs=1e-6)
    else:
        assert watched == plain
    assert set(cache.names) == set(NAMES) - set(EXPLICIT)
    assert tiny.logits(PAIRS) == plain
    assert not tiny.sessions
    assert not any(module.watchers for module in tiny.model.modules() if isinstance(module, Attend))


@pytest.mark.parametrize("name", NAMES)
def test_editing_with_identity_changes_nothing(tiny, name):
    plain = tiny.logits(PAIRS)
    with tiny.edit({name: same}):
        assert tiny.logits(PAIRS) == (pytest.approx(plain, abs=1e-5) if name in EXPLICIT else plain)
    with tiny.edit({name: torch.clone}):
        assert tiny.logits(PAIRS) == (pytest.approx(plain, abs=1e-5) if name in EXPLICIT else plain)


def test_explicit_attention_is_fused_attention(tiny):
    plain = tiny.logits(PAIRS)
    with tiny.record("*.pattern", "*.scores", "vision.*.pattern", "vision.*.scores") as cache:
        assert tiny.logits(PAIRS) == pytest.approx(plain, abs=1e-5)
    for name in cache.names:
        if name.endswith("pattern") and name.startswith("decoder"):
            for pair in range(len(PAIRS)):
                torch.testing.assert_close(cache[name][pair].sum(-1), torch.ones(cache[name][pair].shape[:-1]))


@pytest.mark.parametrize("name", NAMES)
def test_every_tap_bears_on_the_score(tiny, name):
    """An edit at any tap reaches the logit of a pair with pictures and text, so every tap stands in the way of the score."""
    pair = [PAIRS[1]]
    plain = tiny.logits(pair)

    def changed(x):
        generator = torch.Generator().manual_seed(0)
        return x + torch.randn(x.shape, generator=generator)

    with tiny.edit({name: changed}):
        assert abs(tiny.logits(pair)[0] - plain[0]) > 1e-4


def test_shapes_are_as_listed(tiny):
    pair = ["a question", ["text", noise(84, 56, 1)]]
    with tiny.record(*WATCHED_BY_NAME, every_token=True) as cache:
        tiny.logits([pair])
    encoding = cache.encodings[0]
    sizes = {"tokens": len(encoding), "patches": 24, "visual tokens": 6}
    for tap in tiny.taps(WATCHED_BY_NAME):
        wanted = [sizes.get(part.strip(), part) for part in tap.shape.strip("()").split(",") if part.strip()]
        if tap.name == "decoder.norm.out":
            wanted[0] = len(encoding)
        assert list(cache[tap.name].tensor.shape) == [int(size) for size in wanted], tap


def test_the_last_layer_has_the_score_tokens_row_alone(tiny):
    with tiny.record("decoder.layers.2.*", "decoder.layers.1.residual.after") as cache:
        tiny.logits(PAIRS[:1])
    length = len(cache.encodings[0])
    assert cache["decoder.layers.2.residual.after"].tensor.shape[0] == 1
    assert cache["decoder.layers.2.attention.pattern"].tensor.shape == (4, 1, length)
    assert cache["decoder.layers.2.attention.key"].tensor.shape[0] == length
    assert cache["decoder.layers.1.residual.after"].tensor.shape[0] == length
    row = cache["decoder.layers.2.residual.after"].at(score_token)
    torch.testing.assert_close(row, cache["decoder.layers.2.residual.after"].tensor)
    with pytest.raises(InputError, match="every_token"):
        cache["decoder.layers.2.residual.after"].at(query.words("heart"))


def test_a_batch_is_its_pairs(tiny):
    with tiny.record(*WATCHED_BY_NAME) as together:
        tiny.logits(PAIRS)
    for number, pair in enumerate(PAIRS):
        with tiny.record(*WATCHED_BY_NAME) as alone:
            tiny.logits([pair])
        for name in alone.names:
            if name.startswith("vision") and number in (0, 2):
                with pytest.raises(InputError, match="shows no picture"):
                    together[name][number]
                continue
            torch.testing.assert_close(together[name][number], alone[name].tensor, atol=1e-5, rtol=1e-4, msg=name)


def test_pairs_are_counted_over_calls_and_batches(tiny):
    with tiny.record("head.logit", "decoder.embeddings") as cache:
        first = tiny.logits(PAIRS, batch_tokens=20)
        second = tiny.logits(PAIRS[2:3])
    assert [float(x) for x in cache["head.logit"]] == [*first, *second]
    assert [len(x) for x in cache["decoder.embeddings"]] == [len(e) for e in cache.encodings]
    with pytest.raises(InputError, match="say which one"):
        _ = cache["head.logit"].tensor


def test_queries_of_one_document_have_rows_of_their_own(tiny):
    pairs = [(text, "One document that is met by several questions.") for text in ("one", "two", "three and four", "one")]
    plain = tiny.logits(pairs)
    with tiny.record("decoder.embeddings") as cache:
        assert tiny.logits(pairs) == pytest.approx(plain, abs=1e-6)
    assert len(cache["decoder.embeddings"]) == 4


def test_words_and_boxes(tiny):
    encoding = tiny.encode(*PAIRS[1])
    assert len(image.all(encoding)) == sum(picture.num_tokens for picture in encoding.pictures)
    shown = encoding.pictures[0]
    width, height = shown.original_size
    assert image.box(0, 0, width, height)(encoding) == image.box(-5, -5, 10**6, 10**6)(encoding)
    rows, columns = shown.token_grid
    assert len(image.box(0, 0, width, height)(encoding)) == rows * columns
    assert image.box(width - 1, height - 1, width, height)(encoding) == image.cell(rows - 1, columns - 1)(encoding)
    with pytest.raises(InputError, match="outside"):
        image.box(width, 0, width + 5, 5)(encoding)
    with pytest.raises(InputError, match="picture 3"):
        image.cell(0, 0, picture=3)(encoding)
    text = tiny.encode("two hearts", "A heart, another heart, and hearty food. 東京タワー")
    words = [text.parts["document"][0][text.origins[i].start : text.origins[i].end] for i in document.words("heart")(text)]
    assert "".join(words).replace(" ", "").lower() == "heartheart"
    assert document.words("heart", occurrence=1)(text) < document.words("food")(text)
    assert document.words("京タ")(text)
    for wrong in ("cat", "", "   "):
        with pytest.raises(InputError, match="does not hold"):
            document.words(wrong)(text)
    assert set(everything(text)) - set(document.all(text)) - set(query.all(text)) == set(
        (everything - document.all - query.all)(text)
    )
    assert tokens(-1)(text) == score_token(text)
    assert (document.words("food") | score_token)(text)[-1] == len(text) - 1


def test_patches_under_a_box(tiny):
    pair = ["q", {"image": noise(112, 84, 3)}]
    with tiny.record("vision.embeddings", "vision.merger.out", "vision.blocks.1.attention.pattern") as cache:
        tiny.logits([pair])
    assert cache["vision.embeddings"].at(image.cell(1, 2)).shape == (4, 64)
    patches = cache["vision.embeddings"].tensor
    torch.testing.assert_close(cache["vision.embeddings"].at(image.cell(1, 2)), patches[4 * 6 : 4 * 7])
    torch.testing.assert_close(cache["vision.merger.out"].at(image.cell(1, 2))[0], cache["vision.merger.out"].tensor[6])
    assert cache["vision.blocks.1.attention.pattern"].at(image.cell(0, 0), to=image.cell(1, 2)).shape == (2, 4, 4)
    with pytest.raises(InputError, match="none of a picture"):
        cache["vision.embeddings"].at(score_token)


def test_at_keeps_no_more_than_was_asked_for(tiny):
    text = "word " * 200
    with tiny.record("decoder.layers.*.attention.pattern", at=score_token) as small:
        tiny.logits([("q", text)])
    with tiny.record("decoder.layers.*.attention.pattern") as large:
        tiny.logits([("q", text)])
    assert small.nbytes < large.nbytes / 50
    name = "decoder.layers.0.attention.pattern"
    torch.testing.assert_close(small[name].at(score_token), large[name].at(score_token))
    with pytest.raises(InputError, match="was not recorded at"):
        small[name].at(query.all)
    with pytest.raises(InputError, match="was not recorded"):
        small["decoder.embeddings"]


def test_edits_stay_where_they_are_told(tiny):
    with tiny.record("decoder.layers.1.attention.z", "decoder.layers.0.mlp.out") as before:
        tiny.logits(PAIRS)
    edits = {"decoder.layers.0.mlp.out": zero}
    with tiny.edit(edits, at=query.all), tiny.record("decoder.layers.0.mlp.out") as after:
        tiny.logits(PAIRS)
    for number in range(len(PAIRS)):
        chosen = query.all(before.encodings[number])
        rest = sorted(set(range(len(before.encodings[number]))) - set(chosen))
        old, new = (cache["decoder.layers.0.mlp.out"][number] for cache in (before, after))
        assert not new[chosen].any()
        torch.testing.assert_close(new[rest], old[rest], atol=0, rtol=0)
    with tiny.edit({"decoder.layers.1.attention.z": zero}, heads=[2]), tiny.record("decoder.layers.1.attention.z") as after:
        tiny.logits(PAIRS)
    old, new = before["decoder.layers.1.attention.z"][0], after["decoder.layers.1.attention.z"][0]
    assert not new[:, 2].any()
    torch.testing.assert_close(new[:, [0, 1, 3]], old[:, [0, 1, 3]], atol=0, rtol=0)


def test_attention_from_to(tiny):
    """Scores of query words towards the document set to minus infinity: nothing flows there any more."""
    with (
        tiny.edit(
            {"decoder.layers.*.attention.scores": lambda x: torch.full_like(x, -torch.inf)}, at=query.all, to=document.all
        ),
        tiny.record("decoder.layers.*.attention.pattern", every_token=True) as cache,
    ):
        tiny.logits(PAIRS)
    for number in range(len(PAIRS)):
        cut = cache["decoder.layers.0.attention.pattern"].at(query.all, to=document.all, pair=number)
        assert not cut.any()
        assert cache["decoder.layers.0.attention.pattern"].at(score_token, to=document.all, pair=number).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda r: r.taps("decoder.layer.*"), "no activation is named"),
        (lambda r: r.record("nothing"), "no activation is named"),
        (lambda r: r.edit({"decoder.embeddings": 3}), "must be a function"),
        (lambda r: r.edit({"decoder.layers.0.attention.z": zero}, heads=[4]), "head 4"),
        (lambda r: r.edit({"decoder.layers.0.mlp.out": zero}, heads=[0]), "has no heads"),
        (lambda r: r.edit({"decoder.layers.0.mlp.out": zero}, to=query.all), "neither"),
        (lambda r: r.edit({"decoder.layers.0.attention.z": zero}, heads=["a"]), "head 'a'"),
        (lambda r: r.record(), "no activation to keep"),
        (lambda r: document.words(3), "by text"),
    ],
)
def test_wrong_requests(tiny, call, words):
    with pytest.raises(InputError, match=words):
        call(tiny)


@pytest.mark.parametrize(
    "name", ["decoder.layers.1.attention.z", "decoder.layers.0.attention.pattern", "vision.blocks.0.mlp.out"]
)
def test_an_edit_may_write_into_what_it_gets(tiny, name):
    """As hooks of other libraries do; and in any order of heads, everywhere or in one place."""

    def in_place(x):
        x[:] = 0
        return x

    for where in ({}, {"at": image.all}) if name.startswith("vision") else ({}, {"at": query}, {"heads": [3, 0]}):
        with tiny.edit({name: zero}, **where):
            wanted = tiny.logits(PAIRS)
        with tiny.edit({name: in_place}, **where):
            assert tiny.logits(PAIRS) == wanted
    if not name.startswith("vision"):
        plain = tiny.logits(PAIRS)
        with tiny.edit({name: torch.clone}, heads=[3, 2, 1, 0]):
            assert tiny.logits(PAIRS) == pytest.approx(plain, abs=1e-5)


def test_pictures_of_one_prompt_are_told_apart(tiny):
    first, second = noise(84, 56, 1), noise(84, 84, 2)
    pair = [("q", [first, "between", second])]
    name = "vision.blocks.1.attention.pattern"
    plain = tiny.logits(pair)[0]
    changed = {}
    for number in (0, 1):
        with tiny.edit({name: zero}, at=image.cell(0, 0, picture=number)):
            changed[number] = tiny.logits(pair)[0]
    assert len({round(value, 6) for value in (plain, *changed.values())}) == 3
    with tiny.record(name, "vision.merger.out") as cache:
        tiny.logits(pair)
    assert cache[name].at(image.cell(0, 0, picture=1)).shape == (2, 4, 36)
    assert cache[name].at(image.cell(0, 0), to=image.cell(1, 2)).shape == (2, 4, 4)
    with pytest.raises(InputError, match="one picture's"):
        cache[name].at(image.all)
    assert cache["vision.merger.out"].at(image.all).shape == (6 + 9, 64)


def test_a_picture_shown_twice_is_edited_wherever_it_is_named(tiny):
    picture = noise(84, 56, 1)
    pair = [("q", [picture, "and again", picture])]
    results = []
    for number in (0, 1):
        with tiny.edit({"vision.merger.out": zero}, at=image.cell(0, 1, picture=number)):
            results.append(tiny.logits(pair)[0])
    assert results[0] == results[1] != tiny.logits(pair)[0]


def test_calls_do_not_overwrite_each_other(tiny):
    pair = [PAIRS[3]]
    with tiny.record("vision.merger.out") as cache:
        tiny.logits(pair)
        with tiny.edit({"vision.embeddings": zero}):
            tiny.logits(pair)
    with tiny.record("vision.merger.out") as plain:
        tiny.logits(pair)
    torch.testing.assert_close(cache["vision.merger.out"][0], plain["vision.merger.out"][0], atol=0, rtol=0)
    assert not torch.equal(cache["vision.merger.out"][0], cache["vision.merger.out"][1])


def test_what_was_scored_can_be_used_where_gradients_flow(tiny):
    from m0.interp import replace

    name = "decoder.layers.1.attention.z"
    with tiny.record(name) as cache:
        tiny.logits(PAIRS[:1])
    vector = torch.zeros(64, requires_grad=True)
    edits = {"decoder.layers.0.residual.before": lambda x: x + vector, name: replace(cache[name].tensor)}
    with tiny.edit(edits):
        (gradient,) = torch.autograd.grad(forward(tiny, [tiny.encode(*PAIRS[0])]).sum(), vector)
    assert gradient.abs().sum() > 0


def test_rows_kept_alone_lie_on_the_way_of_gradients(tiny):
    for name in ("decoder.layers.0.mlp.out", "decoder.layers.0.attention.pattern"):
        with tiny.record(name, at=query) as cache:
            logit = forward(tiny, [tiny.encode(*PAIRS[0])])[0]
        (gradient,) = torch.autograd.grad(logit, cache[name].tensor)
        assert gradient.abs().sum() > 0


def test_a_call_that_failed_is_named(tiny):
    def fail(x):
        raise RuntimeError("stop")

    with tiny.record("decoder.layers.2.mlp.out") as cache:
        with pytest.raises(RuntimeError, match="stop"), tiny.edit({"decoder.layers.0.mlp.out": fail}):
            tiny.logits(PAIRS[:1])
        tiny.logits(PAIRS[:1])
    with pytest.raises(InputError, match="did not get that far"):
        cache["decoder.layers.2.mlp.out"][0]
    assert cache["decoder.layers.2.mlp.out"][1].shape == (1, 64)


def test_the_model_itself_is_not_called_while_watched(tiny):
    from m0.errors import M0Error

    with tiny.record("decoder.embeddings"):
        tiny.logits(PAIRS[:1])
        encoding = tiny.encode(*PAIRS[0])
        with pytest.raises(M0Error, match="through it"):
            tiny.model(encoding.token_ids, encoding.positions, [len(encoding)])


def test_an_edit_of_another_shape_is_refused_and_leaves_no_hook(tiny):
    plain = tiny.logits(PAIRS[:1])
    with pytest.raises(InputError, match="must return shape"), tiny.edit({"decoder.layers.0.mlp.out": lambda x: x[:1]}):
        tiny.logits(PAIRS[:1])
    assert tiny.logits(PAIRS[:1]) == plain


def test_gradients_flow_through_recordings_and_edits(tiny):
    encodings = [tiny.encode(*pair) for pair in PAIRS]
    vector = torch.zeros(64, requires_grad=True)
    with (
        tiny.edit({"decoder.layers.1.residual.before": lambda x: x + vector}),
        tiny.record("decoder.layers.*.mlp.out") as cache,
    ):
        logits = forward(tiny, encodings)
    assert logits.tolist() == pytest.approx(tiny.logits(PAIRS), abs=1e-6)
    (gradient,) = torch.autograd.grad(logits.sum(), vector)
    assert gradient.abs().sum() > 0
    assert cache["decoder.layers.0.mlp.out"][0].grad_fn is not None


def test_per_head_results_add_up_with_an_adapter(tiny_directory):
    from m0 import Reranker

    reranker = Reranker.from_pretrained(tiny_directory, dtype="float32")
    for use_dora in (False, True):
        name = f"dora{use_dora}"
        reranker.adapters.add(name, LoRAConfig(r=4, target_modules=("o_proj", "proj"), use_dora=use_dora))
        for parameter in reranker.adapters.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        with reranker.record("*.attention.result", "*.attention.out", every_token=True) as cache:
            reranker.logits(PAIRS[1:2])
        for layer in range(3):
            for place in (f"decoder.layers.{layer}", f"vision.blocks.{layer}"):
                out, results = cache[f"{place}.attention.out"].tensor, cache[f"{place}.attention.result"].tensor
                bias = 0 if place.startswith("d") else reranker.model.vision.blocks[layer].attn.proj.bias
                torch.testing.assert_close(results.sum(1) + bias, out, atol=1e-5, rtol=1e-4)


def in_one_call(reranker):
    return [reranker.rank("two dogs", [PAIRS[0][1], PAIRS[3][1], PAIRS[2][1]], batch_tokens=1)]


def in_calls_of_one(reranker):
    return reranker.compute_score([("two dogs", d) for d in (PAIRS[0][1], PAIRS[3][1], PAIRS[2][1])], batch_size=1)


@pytest.mark.parametrize("score", [in_one_call, in_calls_of_one])
def test_what_is_watched_does_not_depend_on_how_much_is_computed_at_a_time(tiny, score):
    """The first document has no picture; the selector finds some in the second."""
    with tiny.record("decoder.layers.0.residual.before", at=image) as cache:
        score(tiny)
    assert cache["decoder.layers.0.residual.before"][1].shape[0]
    seen = []
    with tiny.edit({"decoder.layers.0.residual.before": lambda x: seen.append(x.shape) or x}, at=everything):
        score(tiny)
    assert seen


def test_nothing_to_score_is_no_reason_to_look_for_tokens(tiny):
    with tiny.edit({"decoder.layers.0.residual.before": same}, at=query):
        ranking = tiny.rank("two dogs", [None], on_error="skip")
    assert len(ranking.failed) == 1


def test_a_picture_is_seen_in_every_look_of_a_cascade(tiny):
    shown = {"image": noise(90, 90, 8)}
    with tiny.record("vision.blocks.0.residual.before") as cache:
        tiny.rank(shown, ["a", "b"], cascade=Cascade(keep=1, depth=1))
    activation = cache["vision.blocks.0.residual.before"]
    assert len(activation) == 3
    for pair in range(3):
        assert torch.equal(activation[pair], activation[0])
