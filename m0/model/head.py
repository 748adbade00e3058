"""The score head: the last token's hidden state -> one ranking logit, and the logit -> a relevance between 0 and 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScoreHead(nn.Sequential):
    """Linear -> ReLU -> Linear, with biases (the vendor's MLP, trained last)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(nn.Linear(hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, 1))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(sequences, hidden) -> logits (sequences,)."""
        # A head that is trained stays in float32 above a bfloat16 decoder.
        return super().forward(hidden_states.to(next(self.parameters()).dtype)).squeeze(-1)


def relevance(logits: Tensor, bias: float = 2.65) -> Tensor:
    """sigmoid(logit - bias): the published score. The bias centres the released model's raw logits. Element by
    element, any shape."""
    return torch.sigmoid(logits - bias)
