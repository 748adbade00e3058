"""Ranking losses against the same formulas computed term by term with plain Python numbers."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m0.errors import InputError
from m0.train.losses import DISTILLATION_LOSSES, LOSSES, weighted_loss

LISTS = st.integers(1, 7).flatmap(
    lambda n: st.tuples(
        st.lists(st.floats(-8, 8), min_size=n, max_size=n, unique=True),
        st.lists(st.integers(0, 3), min_size=n, max_size=n),
        st.lists(st.floats(-5, 5), min_size=n, max_size=n),
    )
)


def softplus(x):
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def better(y):
    return [(i, j) for i, j in itertools.product(range(len(y)), repeat=2) if y[i] > y[j]]


def bce(s, y, t):
    relevance = [1 / (1 + math.exp(-(x - 2.65))) for x in s]
    return mean(-math.log(p) if label else -math.log(1 - p) for p, label in zip(relevance, y, strict=True))


def ranknet(s, y, t):
    return mean(softplus(-(s[i] - s[j])) for i, j in better(y))


def margin(s, y, t):
    return mean(max(0.0, 1 - (s[i] - s[j])) for i, j in better(y))


def listnet(s, y, t):
    if not sum(y):
        return 0.0
    total = math.log(sum(math.exp(x) for x in s))
    return -sum(label / sum(y) * (x - total) for x, label in zip(s, y, strict=True))


def listmle(s, y, t):
    order = sorted(range(len(s)), key=lambda i: -y[i])
    loss = 0.0
    for place, i in enumerate(order):
        if y[i] > min(y):
            loss += math.log(sum(math.exp(s[j]) for j in order[place:])) - s[i]
    return loss


def lambdaloss(s, y, t):
    ranks = {i: place for place, i in enumerate(sorted(range(len(s)), key=lambda i: -s[i]), 1)}
    ideal = sum((2**label - 1) / math.log2(1 + place) for place, label in enumerate(sorted(y, reverse=True), 1))
    loss = 0.0
    for i, j in better(y):
        apart = abs(ranks[i] - ranks[j])
        rho = abs(1 / math.log2(1 + ranks[i]) - 1 / math.log2(1 + ranks[j]))
        delta = abs(1 / math.log2(1 + apart) - 1 / math.log2(2 + apart))
        gain = abs(2 ** y[i] - 2 ** y[j]) / ideal
        loss += (rho + 10 * delta) * gain * softplus(-(s[i] - s[j])) / math.log(2)
    return loss


def margin_mse(s, y, t):
    return mean(((s[i] - s[j]) - (t[i] - t[j])) ** 2 for i, j in better(y))


def kl(s, y, t):
    p, q = ([math.exp(x) / sum(map(math.exp, values)) for x in values] for values in (t, s))
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


INDEPENDENT = {f.__name__: f for f in (bce, ranknet, margin, listnet, listmle, lambdaloss, margin_mse, kl)}


def test_every_loss_has_its_independent_computation():
    assert set(INDEPENDENT) == set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=60, deadline=None)
@given(values=LISTS)
def test_values(name, values):
    s, y, t = values
    if name == "bce":
        y = [min(label, 1) for label in y]
    logits = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    loss = LOSSES[name](logits, torch.tensor(y, dtype=torch.float64), torch.tensor(t, dtype=torch.float64))
    loss.backward()
    assert loss.item() == pytest.approx(INDEPENDENT[name](s, y, t), rel=1e-9, abs=1e-9)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name):
    labels, teacher = torch.tensor([0.0, 2, 0, 1, 0]).double(), torch.tensor([0.1, 2, -1, 0.7, 0.3]).double()
    logits = torch.tensor([0.3, -1.2, 0.9, 0.1, 2.0], dtype=torch.float64, requires_grad=True)
    if name == "bce":
        labels = labels.clamp(0, 1)
    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, labels, teacher), logits)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in DISTILLATION_LOSSES])
def test_a_step_down_the_gradient_ranks_better(name):
    """Each loss puts the one relevant document first when followed."""
    logits = torch.tensor([1.0, 0.0, 0.5, -0.5], requires_grad=True)
    labels = torch.tensor([0.0, 0, 0, 1])
    optimizer = torch.optim.SGD([logits], lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        LOSSES[name](logits, labels, None).backward()
        optimizer.step()
    assert logits.argmax() == 3


@pytest.mark.parametrize("name", DISTILLATION_LOSSES)
def test_distilling_needs_scores(name):
    with pytest.raises(InputError, match='no "scores"'):
        LOSSES[name](torch.zeros(2), torch.tensor([1.0, 0]), None)


def test_combined_is_the_weighted_sum_in_float32():
    logits, labels = torch.tensor([1.0, -1, 0.5]), torch.tensor([0.0, 1, 0])
    both = weighted_loss({"listnet": 2.0, "bce": 0.5}, logits.bfloat16(), labels, None)
    assert both.dtype == torch.float32
    expected = 2 * LOSSES["listnet"](logits, labels, None) + 0.5 * LOSSES["bce"](logits, labels, None)
    assert both.item() == pytest.approx(expected.item(), rel=1e-6)
