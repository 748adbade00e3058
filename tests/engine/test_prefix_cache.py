"""Documents kept: the same scores, within limits, in memory and on disk."""

import json
import multiprocessing
import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from m0 import Reranker
from m0.checkpoints.adapters.config import LoRAConfig
from m0.engine import scoring
from m0.engine.batch import compute_prefixes
from m0.engine.prefix_cache import DocumentCache
from m0.engine.prefixes import weights_key
from m0.errors import CheckpointError, InputError
from m0.interp.edits import scale
from tests.conftest import noise

WORDS = "the network must be configured after the system was installed on the disk "
QUERIES = [
    "network",
    "été",
    "!",
    "a rather longer query than that, of many words",
    noise(56, 84, 3),
    ["both", noise(56, 56, 4)],
]


@pytest.fixture(scope="module")
def documents():
    return [
        WORDS * 8,
        "x",
        "ends in punctuation!",
        "ends in a newline\n",
        "日本語の文書です。" * 20,
        noise(84, 56, 1),
        ["words before", noise(56, 112, 2), WORDS * 6, noise(84, 56, 1)],
    ]


@pytest.fixture
def fresh(tiny_directory):
    return Reranker.from_pretrained(tiny_directory, dtype="float32")


def logits(reranker, documents, queries=QUERIES):
    """(queries, documents), a call for each query."""
    rows = [sorted(reranker.rank(query, documents), key=lambda result: result.index) for query in queries]
    return torch.tensor([[result.logit for result in row] for row in rows])


@pytest.fixture(scope="module")
def expected(tiny_directory, documents):
    reranker = Reranker.from_pretrained(tiny_directory, dtype="float32")
    reranker.documents = DocumentCache(max_bytes=0)
    found = logits(reranker, documents)
    assert reranker.documents.counts.computed == 0
    return found


def test_scores_are_the_same(fresh, documents, expected):
    assert fresh.prepare(documents) == len(documents)
    assert fresh.prepare(documents) == 0
    torch.testing.assert_close(logits(fresh, documents), expected, atol=1e-5, rtol=0)
    assert fresh.documents.counts.computed == len(documents)
    assert fresh.documents.counts.hits >= len(documents) * len(QUERIES)


def test_only_the_query_is_computed(fresh, documents, monkeypatch):
    fresh.prepare(documents)
    sizes = []
    forward = type(fresh.model.decoder).forward

    def watched(self, embeddings, *args, **kwargs):
        sizes.append(len(embeddings))
        return forward(self, embeddings, *args, **kwargs)

    monkeypatch.setattr(type(fresh.model.decoder), "forward", watched)
    looks = []
    fresh.model.vision.register_forward_pre_hook(lambda module, args: looks.append(len(args[0])))
    fresh.rank("network", documents)
    assert sum(sizes) <= len(documents) * 8
    assert not looks


def test_a_document_met_twice_is_kept(fresh, documents, expected):
    torch.testing.assert_close(logits(fresh, documents[:1]), expected[:, :1], atol=1e-5, rtol=0)
    assert (fresh.documents.counts.computed, fresh.documents.counts.hits) == (1, len(QUERIES) - 2)
    fresh.score([("network", "short")] * 2)
    fresh.score([("network", "short")])
    assert fresh.documents.counts.computed == 1  # what is short is not worth it


def test_the_least_recently_used_goes_first(fresh):
    documents = [f"{number} {WORDS * 4}" for number in range(4)]
    fresh.prepare(documents[:1])
    one = fresh.documents.bytes
    fresh.documents = DocumentCache(max_bytes=round(2.5 * one))
    fresh.prepare(documents[:2])
    fresh.rank("network", documents[:1])
    fresh.prepare(documents[2:3])  # 1 goes, for 0 was used since
    assert fresh.documents.counts.dropped == 1
    assert len(fresh.documents) == 2
    assert fresh.documents.bytes <= fresh.documents.max_bytes
    assert fresh.prepare(documents[:1]) == 0
    assert fresh.prepare(documents[1:2]) == 1


def test_more_documents_than_fit_are_scored_all_the_same(fresh, documents, expected):
    fresh.documents = DocumentCache(max_bytes=20_000)
    for _ in range(2):
        torch.testing.assert_close(logits(fresh, documents), expected, atol=1e-5, rtol=0)
    assert fresh.documents.bytes <= 20_000
    assert fresh.documents.counts.dropped > 0


@pytest.mark.parametrize(("precision", "bar", "size"), [("bfloat16", 5e-3, 0.51), ("int8", 2e-2, 0.40)])
def test_rounded_states(fresh, documents, expected, precision, bar, size):
    fresh.prepare(documents)
    whole = fresh.documents.bytes
    fresh.documents = DocumentCache(precision=precision)
    fresh.prepare(documents)
    assert fresh.documents.bytes < size * whole
    error = (logits(fresh, documents) - expected).abs().max()
    assert 0 < error < bar


def test_int8_keeps_what_it_says(tiny):
    encoding = tiny.encode("q", WORDS)
    with torch.no_grad():
        (state,) = compute_prefixes(tiny.model, [encoding], None)
    rounded = state.stored_as("int8")
    like = torch.empty(0)
    for number in range(len(state.keys_values)):
        for one, other in zip(state.layer(number, len(state), like), rounded.layer(number, len(state), like), strict=True):
            step = one.abs().amax(-1, keepdim=True) / 127
            assert ((one - other).abs() <= 0.51 * step + 1e-9).all()


# --- whose they are ---------------------------------------------------------------------------------------------------


def test_other_weights_forget(fresh, documents):
    fresh.prepare(documents)
    with torch.no_grad():
        fresh.model.decoder.layers[0].mlp.up_proj.weight.mul_(1.5)
    changed = logits(fresh, documents)
    fresh.documents = DocumentCache(max_bytes=0)
    torch.testing.assert_close(changed, logits(fresh, documents), atol=1e-5, rtol=0)


def test_a_fused_optimizer_forgets(fresh, documents):
    """Its changes are not counted by PyTorch."""
    fresh.prepare(documents)
    for parameter in fresh.model.decoder.layers.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(fresh.model.decoder.layers.parameters(), lr=0.02, fused=True).step()
    changed = logits(fresh, documents)
    fresh.documents = DocumentCache(max_bytes=0)
    torch.testing.assert_close(changed, logits(fresh, documents), atol=1e-5, rtol=0)


def test_rows_of_a_weight_changed_behind_pytorchs_back(fresh, documents):
    """Of each quarter of a weight some numbers are looked at."""
    before = weights_key(fresh)
    weight = fresh.model.decoder.layers[1].self_attn.q_proj.weight
    for quarter in weight.data.chunk(4):
        kept = quarter.clone()
        quarter.zero_()
        assert weights_key(fresh) != before
        quarter.copy_(kept)
        assert weights_key(fresh) == before
    fresh.model.head[-1].bias.data += 1.0  # a single number
    assert weights_key(fresh) != before


def test_the_same_matrices_with_another_alpha_are_another_adapter(fresh, documents, tmp_path):
    fresh.documents = DocumentCache(folder=tmp_path)
    fresh.adapters.add("a", LoRAConfig(r=4, alpha=8.0))
    with torch.no_grad():
        for parameter in fresh.adapters.parameters("a"):
            parameter.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(1))
    fresh.prepare(documents)
    one = fresh.fingerprint()
    fresh.adapters.remove("a")
    fresh.adapters.add("a", LoRAConfig(r=4, alpha=64.0))
    with torch.no_grad():
        for parameter in fresh.adapters.parameters("a"):
            parameter.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(1))
    assert fresh.fingerprint() != one
    assert fresh.prepare(documents) == len(documents)


def test_what_is_held_at_once_has_a_limit(fresh, monkeypatch):
    pairs = [("network", f"{number} {WORDS * 6}") for number in range(40)]
    expected = fresh.logits(pairs)
    held = []
    take = scoring.get_or_compute_prefixes

    def watched(*args):
        found = take(*args)
        held.append(sum(map(len, found.values())))
        return found

    monkeypatch.setattr(scoring, "get_or_compute_prefixes", watched)
    assert fresh.logits(pairs, batch_tokens=64) == pytest.approx(expected, abs=1e-5)
    assert 0 < max(held) <= 4 * 64 + 100


def test_another_adapter_forgets(fresh, documents):
    fresh.prepare(documents)
    fresh.adapters.add("other", LoRAConfig(r=4, alpha=8.0))
    with torch.no_grad():
        for parameter in fresh.adapters.parameters("other"):
            parameter.normal_(0.0, 0.3)
    fresh.adapters.activate("other")
    changed = logits(fresh, documents)
    fresh.documents = DocumentCache(max_bytes=0)
    torch.testing.assert_close(changed, logits(fresh, documents), atol=1e-4, rtol=0)


def test_who_watches_sees_whole_pairs(fresh, documents):
    fresh.prepare(documents)
    with fresh.record("decoder.layers.0.mlp.out") as cache:
        fresh.score([("network", documents[0])])
    assert len(cache["decoder.layers.0.mlp.out"][0]) == len(fresh.encode("network", documents[0]))
    with fresh.edit({"decoder.layers.0.mlp.out": scale(0.0)}):
        edited = fresh.logits([("network", documents[0])])
        with pytest.raises(InputError, match="record"):
            fresh.prepare(documents)
    assert edited != fresh.logits([("network", documents[0])])


# --- on disk ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tiny_directory, documents, tmp_path):
    reranker = Reranker.from_pretrained(tiny_directory, dtype="float32")
    reranker.documents = DocumentCache(folder=tmp_path / "kept")
    reranker.prepare(documents)
    assert len(list((tmp_path / "kept").iterdir())) == len(documents)
    return tmp_path / "kept"


def test_another_process_reads_them(fresh, documents, expected, folder):
    fresh.documents = DocumentCache(folder=folder)
    torch.testing.assert_close(logits(fresh, documents), expected, atol=1e-5, rtol=0)
    assert fresh.documents.counts.read == len(documents)
    assert fresh.documents.counts.computed == 0


def test_without_memory_they_are_read_each_time(fresh, documents, expected, folder):
    fresh.documents = DocumentCache(max_bytes=0, folder=folder)
    torch.testing.assert_close(logits(fresh, documents), expected, atol=1e-5, rtol=0)
    assert fresh.documents.counts.read == len(documents) * len(QUERIES)
    assert fresh.documents.bytes == 0


def test_other_models_do_not_read_them(fresh, documents, folder):
    with torch.no_grad():
        fresh.model.vision.blocks[0].mlp.fc1.bias[0] += 1
    fresh.documents = DocumentCache(folder=folder)
    fresh.rank("network", documents)
    assert fresh.documents.counts.read == 0


def test_a_document_of_many_queries_is_computed_once(fresh, monkeypatch):
    """Of more than meet one copy of it, in one call."""
    monkeypatch.setattr("m0.engine.batching.MAX_GROUP_QUERY_TOKENS", 40)
    monkeypatch.setattr("m0.engine.prefixes.MAX_GROUP_QUERY_TOKENS", 40)
    pairs = [(f"query number {i}", WORDS * 8) for i in range(12)]
    expected = Reranker.logits_of(fresh, [fresh.encode(*pair) for pair in pairs[:1]])
    sizes = []
    fresh.model.decoder.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    found = fresh.logits(pairs)
    length = fresh.encode(*pairs[0]).num_prefix_tokens
    assert len(sizes) > 2
    assert sum(sizes) < length + 12 * 20
    assert found[0] == pytest.approx(expected[0], abs=1e-5)


@pytest.mark.parametrize("harm", ["cut", "changed", "emptied", "swapped", "digest"])
def test_damaged_files_are_made_anew(fresh, documents, expected, folder, harm):
    files = sorted(folder.iterdir(), key=lambda path: path.stat().st_size)
    data = files[-1].read_bytes()
    harmed = {"cut": data[:-100], "changed": data[:-9] + b"\xff" + data[-8:], "emptied": b"", "swapped": files[0].read_bytes()}
    if harm == "digest":  # of a picture, in the part that says what the tensors are
        for path in files:
            with safe_open(path, "pt") as file:
                tensors, about = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())
            if digests := json.loads(about["digests"]):
                about["digests"] = json.dumps([("0" if digests[0][0] != "0" else "1") + digests[0][1:], *digests[1:]])
                save_file(tensors, path, metadata=about)
                break
    else:
        files[-1].write_bytes(harmed[harm])
    fresh.documents = DocumentCache(folder=folder)
    torch.testing.assert_close(logits(fresh, documents), expected, atol=1e-5, rtol=0)
    # A file of another document under this name is whole; its tokens do not fit, so nothing of it is used.
    assert fresh.documents.counts.damaged == (0 if harm == "swapped" else 1)
    if harm != "swapped":
        fresh.documents = DocumentCache(folder=folder)
        fresh.prepare(documents)
        assert (fresh.documents.counts.read, fresh.documents.counts.damaged) == (len(documents), 0)


def write_again(directory, folder, documents, count):
    reranker = Reranker.from_pretrained(directory, dtype="float32")
    for _ in range(count):
        reranker.documents = DocumentCache(folder=folder)
        for file in folder.iterdir():
            file.unlink(missing_ok=True)
        reranker.prepare(documents)
        assert reranker.documents.counts.damaged == 0


def test_two_processes_at_once(tiny_directory, documents, expected, fresh, folder):
    texts = [document for document in documents if isinstance(document, str)]
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=write_again, args=(tiny_directory, folder, texts, 5)) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join()
        assert other.exitcode == 0
    fresh.documents = DocumentCache(folder=folder)
    torch.testing.assert_close(logits(fresh, documents), expected, atol=1e-5, rtol=0)
    assert fresh.documents.counts.damaged == 0


def test_a_folder_that_refuses(fresh, documents, expected, folder, monkeypatch):
    with pytest.raises(InputError, match="cannot hold documents"):
        DocumentCache(folder=next(folder.iterdir()))

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    fresh.documents = DocumentCache(folder=folder / "new")
    monkeypatch.setattr("m0.engine.prefix_cache.write_atomically", full)
    fresh.prepare(documents)
    assert fresh.documents.counts.unwritten == len(documents)
    torch.testing.assert_close(logits(fresh, documents), expected, atol=1e-5, rtol=0)


def test_with_a_folder_documents_are_kept_from_the_first_time(fresh, documents, tmp_path):
    fresh.documents = DocumentCache(folder=tmp_path)
    fresh.rank("network", documents)
    long = [document for document in documents if fresh.encode("q", document).num_prefix_tokens >= 64]
    assert 0 < len(long) == len(list(tmp_path.iterdir()))


# --- what cannot be used ----------------------------------------------------------------------------------------------


def test_arguments(fresh, tmp_path):
    for bad in (-1, 1.5, True, "much"):
        with pytest.raises(InputError, match="max_bytes"):
            DocumentCache(max_bytes=bad)
    with pytest.raises(InputError, match="precision"):
        DocumentCache(precision="int4")
    with pytest.raises(InputError, match="must be a list"):
        fresh.prepare("text")
    with pytest.raises(InputError, match="document 1: "):
        fresh.prepare(["good", tmp_path / "missing.png"])
    assert fresh.prepare([]) == 0
    fresh.documents = DocumentCache(max_bytes=0)
    with pytest.raises(InputError, match="no room"):
        fresh.prepare(["good"])


def test_a_file_that_goes_while_it_is_read_is_not_called_damaged(fresh, documents, expected, folder, monkeypatch):
    """Another process tidies the folder up."""

    def gone(path):
        path.unlink()
        raise CheckpointError("gone")

    fresh.documents = DocumentCache(folder=folder)
    monkeypatch.setattr("m0.engine.prefix_cache.open_safetensors", gone)
    torch.testing.assert_close(logits(fresh, documents), expected, atol=1e-5, rtol=0)
    assert fresh.documents.counts.computed
    assert (fresh.documents.counts.read, fresh.documents.counts.damaged) == (0, 0)


def while_computing(monkeypatch, act):
    """Something else happens the first time that documents are computed."""
    waiting = [act]

    def watched(*args):
        found = compute_prefixes(*args)
        if waiting:
            waiting.pop()()
        return found

    monkeypatch.setattr("m0.engine.prefixes.compute_prefixes", watched)


@pytest.mark.parametrize("on_disk", [False, True])
def test_two_rerankers_that_share_a_cache(tiny_directory, documents, tmp_path, monkeypatch, on_disk):
    """One ranks while the other computes; neither may find what the other has computed."""
    one, other = (Reranker.from_pretrained(tiny_directory, dtype="float32") for _ in range(2))
    with torch.no_grad():
        for weight in other.model.decoder.layers.parameters():
            weight.mul_(1.5)
    plain = {}
    for reranker in (one, other):
        reranker.documents = DocumentCache(max_bytes=0)
        plain[reranker] = logits(reranker, documents)
    assert (plain[one] - plain[other]).abs().max() > 1e-3
    one.documents = other.documents = DocumentCache(folder=tmp_path if on_disk else None)
    while_computing(monkeypatch, lambda: other.rank("two dogs", documents))
    one.prepare(documents)
    for reranker in (other, one, other, one):
        torch.testing.assert_close(logits(reranker, documents), plain[reranker], atol=1e-5, rtol=0)


def test_weights_that_change_while_documents_are_computed(tiny_directory, documents, tmp_path, monkeypatch):
    """The folder must not hold the new weights' documents under the old weights' name."""
    fresh, later = (Reranker.from_pretrained(tiny_directory, dtype="float32") for _ in range(2))
    later.documents = DocumentCache(max_bytes=0)
    expected = logits(later, documents)
    fresh.documents = DocumentCache(folder=tmp_path)

    def change():
        with torch.no_grad():
            for weight in fresh.model.decoder.layers.parameters():
                weight.mul_(1.5)

    while_computing(monkeypatch, change)
    fresh.prepare(documents, batch_tokens=1)
    later.documents = DocumentCache(folder=tmp_path)
    torch.testing.assert_close(logits(later, documents), expected, atol=1e-5, rtol=0)
    later.documents = DocumentCache(max_bytes=0)
    changed = logits(fresh, documents)
    fresh.documents = DocumentCache(max_bytes=0)
    torch.testing.assert_close(logits(fresh, documents), changed, atol=1e-5, rtol=0)


def test_what_is_no_cache_is_refused(fresh):
    for wrong in (None, "folder", 3):
        with pytest.raises(InputError, match="must be a DocumentCache"):
            fresh.documents = wrong
    with pytest.raises(InputError, match="has no name"):
        DocumentCache(folder="")
    with pytest.raises(InputError, match="max_bytes"):
        DocumentCache(max_bytes=-1)


# --- which are kept where there is no room for all --------------------------------------------------------------------


def texts(count, word="first"):
    return [f"{word} {number} {WORDS * 5}" for number in range(count)]


def room_for(reranker, share, documents):
    """A cache for a share of these documents."""
    reranker.documents = DocumentCache()
    reranker.prepare(documents)
    reranker.documents = DocumentCache(max_bytes=round(share * reranker.documents.bytes))


def hits(reranker, query, documents):
    before = reranker.documents.counts.hits
    reranker.rank(query, documents, batch_tokens=128)
    return reranker.documents.counts.hits - before


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("share", [1.01, 0.95, 0.75, 0.5])
def test_a_set_larger_than_the_cache_keeps_its_place(fresh, prepared, share):
    documents = texts(40)
    room_for(fresh, share, documents)
    if prepared:
        fresh.prepare(documents)
    else:  # met once, kept at the second time
        fresh.rank("disk", documents)
        fresh.rank("installed", documents)
    draw = random.Random(1)
    for number, query in enumerate(("network", "system", "after", "was", "disk")):
        # Backwards, in any order, and in several batches of which each is a call to the model.
        order = [documents, documents[::-1], draw.sample(documents, len(documents))][number % 3]
        assert hits(fresh, query, order) >= min(len(documents), (share - 0.1) * len(documents))
    fresh.rank("network", texts(40, "other"), batch_tokens=128)
    assert hits(fresh, "network", documents) >= min(len(documents), (share - 0.1) * len(documents))
    assert fresh.documents.bytes <= fresh.documents.max_bytes


def test_a_set_no_longer_asked_for_makes_room_for_another(fresh):
    first, second = texts(20), texts(20, "second")
    room_for(fresh, 1.01, first)
    fresh.prepare(first)
    fresh.rank("network", first)
    assert [hits(fresh, query, second) for query in ("network", "disk", "system")] == [0, 0, 20]  # met, computed, found
    assert hits(fresh, "network", first) == 0


def test_what_is_prepared_takes_the_place_of_what_is_there(fresh):
    first, second = texts(20), texts(20, "second")
    room_for(fresh, 0.5, first)
    fresh.prepare(first)
    fresh.rank("network", first)
    fresh.prepare(second)
    assert hits(fresh, "network", second) >= 9
    assert hits(fresh, "network", first) == 0


def test_what_is_asked_for_in_every_call_stays(fresh):
    favourites, pool = texts(5), texts(60, "pool")
    room_for(fresh, 1.01, texts(10))
    for turn in range(12):
        some = pool[5 * turn % 60 : 5 * turn % 60 + 5]
        found = hits(fresh, "network", [*favourites, *some])
        assert turn < 2 or found >= 5


def test_two_sets_in_turn_do_not_push_each_other_out(fresh):
    first, second = texts(20), texts(20, "second")
    room_for(fresh, 1.01, first)
    found = [hits(fresh, "network", some) for some in (first, second) * 4]
    assert sum(found[4:]) >= 40


def test_documents_of_many_queries_are_computed_once_without_room(fresh, monkeypatch):
    """The queries of one document that go into several batches, where nothing more can be kept."""
    monkeypatch.setattr("m0.engine.batching.MAX_GROUP_QUERY_TOKENS", 40)
    monkeypatch.setattr("m0.engine.prefixes.MAX_GROUP_QUERY_TOKENS", 40)
    documents = texts(6)
    room_for(fresh, 0.4, documents)
    fresh.prepare(documents)
    before = fresh.documents.counts.computed
    fresh.logits([(f"query number {i}", document) for document in documents for i in range(12)])
    assert fresh.documents.counts.computed - before <= 4


def test_bytes_a_token(fresh):
    """As the docs have it: layers x 2 x key/value heads x head_dim x width, and 8 for the token's number."""
    decoder = fresh.model.config.decoder
    document = WORDS * 8
    tokens = fresh.encode("?", document).num_prefix_tokens
    numbers = decoder.num_layers * 2 * decoder.num_kv_heads * decoder.head_dim
    scales = decoder.num_layers * 2 * decoder.num_kv_heads
    for precision, expected in {"same": 4 * numbers, "bfloat16": 2 * numbers, "int8": numbers + 4 * scales}.items():
        fresh.documents = DocumentCache(precision=precision)
        fresh.prepare([document])
        assert fresh.documents.bytes == tokens * (expected + 8)


@pytest.mark.parametrize("times", [2, 3, 4])
def test_parts_of_a_set_asked_for_several_times_in_a_row(fresh, times):
    """As several users, or several queries, go through a large set part by part."""
    documents = texts(40)
    room_for(fresh, 0.75, documents)
    fresh.prepare(documents)
    for _ in range(4):
        found = 0
        for start in range(0, 40, 5):
            found += sum(hits(fresh, f"query {number}", documents[start : start + 5]) for number in range(times))
        assert found >= 0.65 * times * len(documents)


def test_a_cache_of_nothing_remembers_no_document(fresh, documents):
    fresh.documents = DocumentCache(max_bytes=0)
    for _ in range(2):
        fresh.rank("a question", documents)
    assert not fresh.documents._calls_by_document
    fresh.documents = DocumentCache()
    fresh.rank("a question", documents)
    assert len(fresh.documents._calls_by_document) == len(documents)
