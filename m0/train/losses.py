"""Ranking losses of one query's list: logits of its documents and how relevant each one is -> one number to make small.

Every loss takes

    logits  (documents,)  the model's raw outputs s
    labels  (documents,)  relevance y: 1 and 0, or grades 0, 1, 2, ...
    teacher (documents,)  another model's scores t, for the two losses that distil; None elsewhere

and returns a scalar. Lists with nothing to compare (all documents equally relevant) give zero with a gradient of zero.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from m0.errors import InputError

LOGIT_BIAS = 2.65
LAMBDA_MU = 10.0

LossFunction = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


def bce(logits: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
    """Pointwise binary cross-entropy of relevance sigmoid(s - 2.65) with y cut to 0..1, mean over the documents. Logits and
    labels: (documents,).

    The only loss here that fixes where scores lie, not just their order; hence the bias of the published score.
    """
    return F.binary_cross_entropy_with_logits(logits - LOGIT_BIAS, labels.to(logits.dtype).clamp(0, 1))


def ranknet(logits: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
    """Pairwise logistic: mean over pairs with y_i > y_j of log(1 + exp(-(s_i - s_j))) (Burges et al. 2005). Logits and labels:
    (documents,)."""
    differences, better = _pairwise_differences(logits, labels)
    return _masked_mean(F.softplus(-differences), better)


def margin(logits: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
    """Hinge: mean over pairs with y_i > y_j of max(0, 1 - (s_i - s_j)) (Herbrich et al. 1999). Logits and labels: (documents,)."""
    differences, better = _pairwise_differences(logits, labels)
    return _masked_mean(F.relu(1.0 - differences), better)


def listnet(logits: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
    """Listwise softmax: -sum_i p_i log softmax(s)_i with p = y / sum(y). Logits and labels: (documents,).

    ListNet's cross-entropy of top-one probabilities (Cao et al. 2007), but with grades shared out in proportion, where the
    paper takes softmax(y): so irrelevant documents are wanted with probability 0 (Bruch et al. 2019). With one relevant
    document it is InfoNCE.
    """
    weight = labels.to(logits.dtype)
    total = weight.sum()
    if total <= 0:
        return logits.sum() * 0.0
    return -(weight / total * F.log_softmax(logits, dim=0)).sum()


def listmle(logits: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
    """-log P(pi) under Plackett-Luce, pi the order by falling y: sum_k [logsumexp(s_pi(k..n)) - s_pi(k)] (Xia et al. 2008).

    As in its top-k form (Xia et al. 2009) the sum stops after the last document that is better than some other one, so that
    irrelevant documents need no order among themselves. Ties above that keep the order given, which training shuffles. Logits
    and labels: (documents,).
    """
    order = torch.argsort(labels, descending=True, stable=True)
    ordered = logits[order]
    ranked = int((labels > labels.min()).sum())
    if ranked == 0:
        return logits.sum() * 0.0
    rest = torch.logcumsumexp(ordered.flip(0), dim=0).flip(0)  # log of the sum over what is not placed yet
    return (rest - ordered)[:ranked].sum()


def lambdaloss(logits: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
    """NDCG-Loss2++ (Wang et al. 2018, LambdaLoss): sum over pairs with y_i > y_j of
    (rho_ij + 10 delta_ij) |G_i - G_j| log2(1 + exp(-(s_i - s_j))), where

        G_i      (2^y_i - 1) / ideal DCG
        D(k)     log2(1 + k)
        rho_ij   |1 / D(rank_i) - 1 / D(rank_j)|                           (LambdaRank's)
        delta_ij |1 / D(|rank_i - rank_j|) - 1 / D(|rank_i - rank_j| + 1)|

    and ranks are those of the present logits, held constant in the backward pass. Logits and labels: (documents,).
    """
    count = logits.shape[0]
    gains = torch.exp2(labels.to(logits.dtype)) - 1
    discount = torch.log2(torch.arange(count, device=logits.device, dtype=logits.dtype) + 2)  # D(1), D(2), ...
    ideal = (gains.sort(descending=True).values / discount).sum()
    if ideal <= 0:
        return logits.sum() * 0.0
    gains = gains / ideal
    ranks = torch.empty_like(discount, dtype=torch.long)
    ranks[torch.argsort(logits.detach(), descending=True, stable=True)] = torch.arange(count, device=logits.device)
    rho = (1 / discount[ranks][:, None] - 1 / discount[ranks][None, :]).abs()
    rank_distance = (ranks[:, None] - ranks[None, :]).abs()
    # D(apart) and D(apart + 1); the diagonal (apart = 0) is never used.
    delta = (1 / discount[(rank_distance - 1).clamp(min=0)] - 1 / discount[rank_distance.clamp(max=count - 1)]).abs()
    differences, better = _pairwise_differences(logits, labels)
    weight = (rho + LAMBDA_MU * delta) * (gains[:, None] - gains[None, :]).abs()
    terms = weight * F.softplus(-differences) / torch.log(torch.tensor(2.0, dtype=logits.dtype, device=logits.device))
    return terms.masked_fill(~better, 0.0).sum()


def margin_mse(logits: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
    """Mean over pairs with y_i > y_j of ((s_i - s_j) - (t_i - t_j))^2 (Hofstaetter et al. 2020).

    Logits, labels and teacher: (documents,). Raises InputError without a teacher.
    """
    target = _require_teacher(teacher, "margin_mse").to(logits.dtype)
    differences, better = _pairwise_differences(logits, labels)
    return _masked_mean((differences - (target[:, None] - target[None, :])) ** 2, better)


def kl(logits: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
    """KL(softmax(t) || softmax(s)) over the list (Hinton et al. 2015, at temperature 1). Logits and teacher: (documents,).

    Raises InputError without a teacher.
    """
    target = F.log_softmax(_require_teacher(teacher, "kl").to(logits.dtype), dim=0)
    return F.kl_div(F.log_softmax(logits, dim=0), target, reduction="sum", log_target=True)


LOSSES: dict[str, LossFunction] = {
    "bce": bce,
    "ranknet": ranknet,
    "margin": margin,
    "listnet": listnet,
    "listmle": listmle,
    "lambdaloss": lambdaloss,
    "margin_mse": margin_mse,
    "kl": kl,
}
DISTILLATION_LOSSES = ("margin_mse", "kl")


def weighted_loss(weights: dict[str, float], logits: Tensor, labels: Tensor, teacher: Tensor | None) -> Tensor:
    """Weighted sum of losses by name, one number, computed in float32 or wider. Logits, labels and teacher: (documents,)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    terms = [weight * LOSSES[name](logits, labels, teacher) for name, weight in weights.items()]
    return torch.stack(terms).sum()


def _pairwise_differences(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """s_i - s_j of all pairs, and whether i is the better one: both (documents, documents)."""
    return logits[:, None] - logits[None, :], labels[:, None] > labels[None, :]


def _masked_mean(terms: Tensor, mask: Tensor) -> Tensor:
    return terms.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def _require_teacher(teacher: Tensor | None, name: str) -> Tensor:
    if teacher is None:
        raise InputError(f'the loss {name} distils, but the line has no "scores".')
    return teacher
