"""transformers' own Qwen2-VL, called as the vendor's code calls it: left-padded batches, score token appended, MLP on the
last position. Everything here is independent of `m0` but for the sizes it is given."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl import modeling_qwen2_vl
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from m0 import RerankerConfig

PAD = 0


class ReferenceReranker(nn.Module):
    """The backbone and the vendor's score MLP."""

    def __init__(self, config: RerankerConfig, attention: str = "sdpa") -> None:
        super().__init__()
        described = Qwen2VLConfig(**config.to_dict("nested"))
        described._attn_implementation = attention
        self.model = Qwen2VLModel(described)
        hidden = config.decoder.hidden_size
        self.score = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.image_token_id = config.image_token_id

    def forward(
        self, sequences: Sequence[Tensor], patches: Tensor | None = None, grids: Sequence[tuple[int, int]] = ()
    ) -> Tensor:
        """Logits of the sequences as one left-padded batch, (sequences,)."""
        return self.score(self.states(sequences, patches, grids)).squeeze(-1)

    def states(self, sequences: Sequence[Tensor], patches: Tensor | None, grids: Sequence[tuple[int, int]]) -> Tensor:
        """The final state of each sequence's last token, (sequences, hidden)."""
        width = max(len(sequence) for sequence in sequences)
        ids = torch.full((len(sequences), width), PAD)
        mask = torch.zeros(len(sequences), width, dtype=torch.long)
        for row, sequence in enumerate(sequences):
            ids[row, width - len(sequence) :] = sequence
            mask[row, width - len(sequence) :] = 1
        pictures = {}
        if patches is not None:
            grid = torch.tensor([[1, rows, columns] for rows, columns in grids])
            kinds = (ids == self.image_token_id).int() * mask.int()
            pictures = {"pixel_values": patches, "image_grid_thw": grid, "mm_token_type_ids": kinds}
        self.model.rope_deltas = None
        return self.model(input_ids=ids, attention_mask=mask, use_cache=False, **pictures).last_hidden_state[:, -1]

    def hub_state(self) -> dict[str, Tensor]:
        """The weights under the names of the released files."""
        state = {}
        for key, value in self.state_dict().items():
            key = key.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
            state[key] = value
        return state

    def nested_state(self) -> dict[str, Tensor]:
        """The weights under the names that newer transformers writes."""
        return dict(self.state_dict())


class _Float64Torch:
    """`torch` as the reference's module sees it, with float32 read as float64."""

    float32 = float = torch.float64

    def __getattr__(self, name: str):
        return getattr(torch, name)


@contextlib.contextmanager
def float64_throughout() -> Iterator[None]:
    """Lift the reference's inner casts to float32 (norms, rotary, softmax), which would otherwise bound a float64 run."""
    lowered = torch.Tensor.float
    modeling_qwen2_vl.torch, torch.Tensor.float = _Float64Torch(), torch.Tensor.double
    try:
        yield
    finally:
        modeling_qwen2_vl.torch, torch.Tensor.float = torch, lowered
