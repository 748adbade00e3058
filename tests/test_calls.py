"""What may run beside what: calls of several threads on one reranker."""

import copy
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from m0 import LoRAConfig, Reranker
from m0.engine.prefix_cache import DocumentCache
from m0.errors import InputError
from m0.interp.edits import zero
from m0.locks import CallLock
from tests.conftest import noise

QUERY = "network"
DOCUMENTS = ["the network must be configured", "a needle that points north " * 4, noise(84, 56, 1), ["both", noise(56, 56, 2)]]
PATTERN = "decoder.layers.*.attention.pattern"


@pytest.fixture
def fresh(tiny_directory):
    return Reranker.from_pretrained(tiny_directory, dtype="float32")


def ranked(reranker):
    """Logits in the documents' order."""
    return [result.logit for result in sorted(reranker.rank(QUERY, DOCUMENTS), key=lambda result: result.index)]


def together(*calls):
    """Run each of these in a thread of its own, all beginning at once; the first error is raised here."""
    barrier, errors = threading.Barrier(len(calls)), []

    def run(call):
        barrier.wait()
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# --- the lock ---------------------------------------------------------------------------------------------------------


def test_users_run_beside_each_other_and_a_changer_alone():
    lock, inside, seen = CallLock(), [], []

    def use():
        for _ in range(20):
            with lock.shared():
                inside.append("use")
                seen.append((inside.count("use"), inside.count("change")))
                time.sleep(0.001)
                inside.remove("use")

    def change():
        for _ in range(20):
            with lock.exclusive(), lock.exclusive(), lock.shared():
                inside.append("change")
                seen.append((inside.count("use"), inside.count("change")))
                inside.remove("change")
                time.sleep(0.0005)

    together(use, use, use, change, change)
    assert max(users for users, _ in seen) > 1
    assert all(not changers or (users, changers) == (0, 1) for users, changers in seen)


def test_a_call_inside_a_call_passes_a_changer_that_waits():
    lock, order = CallLock(), []
    waiting = threading.Event()

    def change():
        waiting.set()
        with lock.exclusive():
            order.append("change")

    with lock.shared():
        thread = threading.Thread(target=change)
        thread.start()
        waiting.wait()
        while not lock._waiting:
            time.sleep(0.001)
        with lock.shared():
            order.append("use")
    thread.join()
    assert order == ["use", "change"]


def test_a_changer_inside_a_call_is_told_so():
    lock = CallLock()
    with lock.shared(), pytest.raises(InputError, match="from inside a call"), lock.exclusive():
        pass
    with lock.exclusive():  # and the lock is as before
        pass


def test_a_wait_that_is_broken_off_leaves_others_free(monkeypatch):
    lock = CallLock()
    with lock.shared():

        def interrupted(self, predicate, timeout=None):
            raise KeyboardInterrupt

        def change():
            with monkeypatch.context() as patched:
                patched.setattr(threading.Condition, "wait_for", interrupted)
                with pytest.raises(KeyboardInterrupt), lock.exclusive():
                    pass

        together(change)
    together(lambda: lock.shared().__enter__())  # does not wait for a changer that has gone


# --- scores -----------------------------------------------------------------------------------------------------------


def test_ranks_explains_and_switches_from_eight_threads(fresh):
    fresh.adapters.add("mine", LoRAConfig(r=4, alpha=8.0, modules_to_save=("score",)))
    with torch.no_grad():
        for parameter in fresh.adapters.parameters("mine"):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    known = {}
    for name in (None, "mine"):
        fresh.adapters.activate(name)
        explained = fresh.explain(QUERY, DOCUMENTS[3])
        known[name] = ranked(fresh), (explained.logit, float(explained.tokens.abs().sum()))
    assert max(abs(a - b) for a, b in zip(known[None][0], known["mine"][0], strict=True)) > 0.01
    rankings, explanations = [], []

    def rank():
        for _ in range(15):
            rankings.append(ranked(fresh))

    def explain():
        for _ in range(10):
            found = fresh.explain(QUERY, DOCUMENTS[3])
            explanations.append((found.logit, float(found.tokens.abs().sum())))

    def switch():
        for _ in range(15):
            fresh.adapters.activate("mine")
            fresh.adapters.activate(None)

    def record():
        for _ in range(6):
            with fresh.record(PATTERN) as cache:
                fresh.rank(QUERY, DOCUMENTS)
            assert len(cache.encodings) == len(DOCUMENTS)

    together(rank, rank, rank, rank, explain, explain, switch, record)
    for found, place in ((rankings, 0), (explanations, 1)):
        for values in found:
            assert any(values == pytest.approx(one[place], abs=1e-4) for one in known.values()), (values, known)
    assert len(rankings) == 60
    assert len(explanations) == 20
    assert not fresh.open_sessions.everywhere


def test_a_recording_and_an_edit_are_their_own_threads(fresh):
    """Bit for bit: what others compute beside them is what they compute alone."""
    fresh.documents = DocumentCache(max_bytes=0)
    plain = ranked(fresh)
    with fresh.edit({"decoder.layers.0.attention.z": zero}):
        edited = ranked(fresh)
    assert edited != plain
    found = {"plain": [], "edited": []}
    caches = []

    def rank():
        found["plain"] += [ranked(fresh) for _ in range(12)]

    def edit():
        for _ in range(6):
            with fresh.edit({"decoder.layers.0.attention.z": zero}, every_token=False):
                found["edited"].append(ranked(fresh))

    def record():
        for _ in range(6):
            with fresh.record(PATTERN, "vision.blocks.0.mlp.out", every_token=True) as cache:
                fresh.score([(QUERY, DOCUMENTS[0])])
                fresh.score([(QUERY, DOCUMENTS[2])])
            caches.append(cache)

    together(rank, edit, record)
    assert all(values == plain for values in found["plain"])
    assert all(values == edited for values in found["edited"])
    with fresh.record(PATTERN, every_token=True) as alone:
        fresh.score([(QUERY, DOCUMENTS[0])])
    for cache in caches:
        assert len(cache.encodings) == 2
        for name in alone.names:
            assert torch.equal(cache[name][0], alone[name][0])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in fresh.model.modules())


def test_an_open_recording_does_not_hold_up_a_switch(fresh):
    """Locks are held for a call, not for a `with` block; and what is recorded next is the new model's."""
    fresh.adapters.add("mine", LoRAConfig(r=4, modules_to_save=("score",)))
    with torch.no_grad():
        for parameter in fresh.adapters.parameters("mine"):
            parameter.fill_(0.05)
    fresh.adapters.activate(None)
    with fresh.record("head.pre", "decoder.layers.0.attention.z") as cache:
        before = fresh.logits([(QUERY, DOCUMENTS[0])])
        together(lambda: fresh.adapters.activate("mine"))
        after = fresh.logits([(QUERY, DOCUMENTS[0])])
    assert before != after
    assert len(cache["head.pre"]) == 2
    assert not torch.equal(cache["head.pre"][0], cache["head.pre"][1])


def test_layers_replaced_while_a_recording_is_open_are_recorded(fresh):
    with fresh.record("decoder.layers.0.attention.query", "decoder.layers.0.attention.z") as cache:
        fresh.score([(QUERY, DOCUMENTS[0])])
        fresh.adapters.add("mine", LoRAConfig(r=4))  # its layers take the place of the plain ones
        fresh.score([(QUERY, DOCUMENTS[0])])
    assert torch.equal(cache["decoder.layers.0.attention.query"][0], cache["decoder.layers.0.attention.query"][1])


def test_explanations_beside_each_other_leave_parameters_as_they_were(fresh):
    before = {name: parameter.requires_grad for name, parameter in fresh.model.named_parameters()}
    fresh.model.requires_grad_(False)
    expected = fresh.explain(QUERY, DOCUMENTS[3])
    found = []

    def explain():
        for _ in range(8):
            found.append(fresh.explain(QUERY, DOCUMENTS[3]))

    together(explain, explain, explain)
    for one in found:
        torch.testing.assert_close(one.tokens, expected.tokens, atol=1e-6, rtol=1e-4)
        assert one.ledger["gap"] == pytest.approx(expected.ledger["gap"], abs=1e-5)
    assert not any(parameter.requires_grad for parameter in fresh.model.parameters())
    assert before.keys() == dict(fresh.model.named_parameters()).keys()


# --- changes ----------------------------------------------------------------------------------------------------------


def test_new_weights_wait_for_calls_under_way(fresh):
    fresh.documents = DocumentCache(max_bytes=0)
    with torch.no_grad():
        other = {name: 1.5 * value for name, value in fresh.model.state_dict().items()}
    mine = {name: value.clone() for name, value in fresh.model.state_dict().items()}
    known = []
    for state in (other, mine):
        fresh.change_weights(lambda model, state=state: model.load_state_dict(state))
        known.append(ranked(fresh))
    found = []

    def rank():
        for _ in range(10):
            found.append(ranked(fresh))

    def change():
        for _ in range(10):
            assert fresh.change_weights(lambda model: (model.load_state_dict(other), "done")[1]) == "done"
            fresh.change_weights(lambda model: model.load_state_dict(mine))

    together(rank, rank, change)
    assert all(any(values == pytest.approx(one, abs=1e-4) for one in known) for values in found)


def test_what_cannot_wait_says_so(fresh):
    inside = []

    def act(x):
        for change in (
            lambda: fresh.adapters.activate(None),
            lambda: fresh.change_weights(lambda model: None),
            lambda: fresh.compile(),
            lambda: copy.deepcopy(fresh),
        ):
            with pytest.raises(InputError, match="inside a call"):
                change()
            inside.append(change)
        return x

    with fresh.edit({"decoder.layers.0.mlp.out": act}):
        fresh.score([(QUERY, DOCUMENTS[0])])
    assert len(inside) == 4
    opened, closed = threading.Event(), threading.Event()

    def hold():
        with fresh.record(PATTERN):
            opened.set()
            closed.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    opened.wait()
    with pytest.raises(InputError, match="another thread"):
        fresh.quantize("int8-weights")
    with pytest.raises(InputError, match="copied or pickled while"):
        copy.deepcopy(fresh)
    closed.set()
    thread.join()


# --- copies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_score_the_same_and_share_nothing(fresh, how, tmp_path):
    fresh.documents = DocumentCache(max_bytes=10**6, precision="bfloat16", folder=tmp_path / "kept")
    fresh.adapters.add("mine", LoRAConfig(r=4))
    with torch.no_grad():
        for parameter in fresh.adapters.parameters("mine"):
            parameter.fill_(0.05)
    copied = copy.deepcopy(fresh) if how == "deepcopy" else pickle.loads(pickle.dumps(fresh))
    assert ranked(copied) == pytest.approx(ranked(fresh), abs=1e-6)
    assert copied.image_settings == fresh.image_settings
    assert (copied.documents.max_bytes, copied.documents.precision) == (10**6, "bfloat16")
    assert copied.documents.folder == fresh.documents.folder
    assert copied.calls is copied.adapters.calls is not fresh.calls
    expected = ranked(fresh)
    copied.adapters.activate(None)
    with torch.no_grad():
        copied.model.head[0].weight.zero_()
    assert ranked(fresh) == expected
    copied.save_pretrained(tmp_path / "saved")
    with fresh.record(PATTERN), pytest.raises(InputError, match="copied or pickled"):
        copy.deepcopy(fresh) if how == "deepcopy" else pickle.dumps(fresh)
    with copied.record(PATTERN) as cache:
        copied.score([(QUERY, DOCUMENTS[0])])
    assert len(cache.encodings) == 1


def test_shallow_copies_are_refused(fresh):
    with pytest.raises(InputError, match="deepcopy"):
        copy.copy(fresh)


def test_a_model_in_8_bits_is_copied_but_not_pickled(fresh):
    fresh.quantize("int8-weights")
    assert ranked(copy.deepcopy(fresh)) == ranked(fresh)
    with pytest.raises(InputError, match="8 bits cannot be pickled"):
        pickle.dumps(fresh)


# --- what waits for what ----------------------------------------------------------------------------------------------


def test_documents_that_wait_for_another_call_do_not_hold_one_up(fresh):
    """A generator of documents may ask another thread to rank, while a third waits to change the model."""
    fresh.adapters.add("mine", LoRAConfig(r=4))
    pool = ThreadPoolExecutor(1)

    def documents():
        yield DOCUMENTS[0]
        switch.start()
        time.sleep(0.1)  # by now the change waits, or is done
        yield str(pool.submit(lambda: len(fresh.rank(QUERY, DOCUMENTS))).result(timeout=30))

    switch = threading.Thread(target=fresh.adapters.activate, args=(None,))
    assert len(fresh.rank(QUERY, documents())) == 2
    switch.join()
    for call in (fresh.score, fresh.logits, fresh.compute_score):
        pairs = ((QUERY, str(pool.submit(lambda: len(fresh.rank(QUERY, DOCUMENTS))).result(timeout=30))) for _ in range(3))
        switch = threading.Thread(target=fresh.adapters.activate, args=("mine",))
        switch.start()
        assert len(call(pairs)) == 3
        switch.join()
    pool.shutdown()


def test_changers_without_end_do_not_starve_users(fresh):
    lock, stop, used = CallLock(), threading.Event(), []

    def change():
        while not stop.is_set():
            with lock.exclusive():
                time.sleep(0.001)

    changers = [threading.Thread(target=change) for _ in range(3)]
    for thread in changers:
        thread.start()

    def use():
        for _ in range(20):
            with lock.shared():
                used.append(None)

    users = [threading.Thread(target=use) for _ in range(3)]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join(timeout=30)
    found = len(used)
    stop.set()
    for thread in (*changers, *users):
        thread.join()
    assert found == 60
    assert (lock._invited, lock._queued, lock._waiting, lock._users) == (0, 0, 0, {})


def test_a_session_closed_by_another_thread_or_by_none(fresh):
    """As web frameworks do whose handlers run in a pool of threads."""
    recording = fresh.record(PATTERN)
    together(recording.__enter__)
    recording.__exit__(None, None, None)
    assert not fresh.open_sessions.everywhere
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in fresh.model.modules())
    left = fresh.record("decoder.layers.0.mlp.out")
    together(left.__enter__)  # the thread ends, and its number may be another's soon
    found = []
    for _ in range(5):
        together(lambda: found.append(ranked(fresh)))
    assert all(values == pytest.approx(found[0], abs=1e-6) for values in found)
    left.__exit__(None, None, None)
    copy.deepcopy(fresh)


def test_copies_and_adapters_made_in_inference_mode_can_be_explained(fresh, tmp_path):
    fresh.adapters.add("saved", LoRAConfig(r=2))
    fresh.adapters.save(tmp_path / "saved")
    data = pickle.dumps(fresh)
    with torch.inference_mode():
        copies = [copy.deepcopy(fresh), pickle.loads(data)]
        copies[0].adapters.add("more", LoRAConfig(r=2))
        copies[1].adapters.load(tmp_path / "saved", "again")
    for one in (fresh, *copies):
        assert one.explain(QUERY, DOCUMENTS[0]).tokens.any()


def test_change_weights_wants_a_function(fresh):
    with pytest.raises(InputError, match="change is int"):
        fresh.change_weights(5)
