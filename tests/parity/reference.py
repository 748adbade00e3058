"""transformers' own Qwen2-VL, called as the vendor's code calls it: left-padded batches, score token appended, MLP on the
last position. Everything here is independent of `m0` but for the sizes it is given."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl import modeling_qwen2_vl
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from m0 import RerankerConfig, RerankerModel

PAD = 0
OURS = {"model.language_model.": "decoder.", "model.visual.": "vision.", "score.": "head."}


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
        width, device = max(len(sequence) for sequence in sequences), next(self.parameters()).device
        ids = torch.full((len(sequences), width), PAD)
        mask = torch.zeros(len(sequences), width, dtype=torch.long)
        for row, sequence in enumerate(sequences):
            ids[row, width - len(sequence) :] = sequence
            mask[row, width - len(sequence) :] = 1
        pictures = {}
        if patches is not None:
            grid = torch.tensor([[1, rows, columns] for rows, columns in grids], device=device)
            kinds = ((ids == self.image_token_id).int() * mask.int()).to(device)
            pictures = {"pixel_values": patches, "image_grid_thw": grid, "mm_token_type_ids": kinds}
        self.model.rope_deltas = None
        ids, mask = ids.to(device), mask.to(device)
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


# --- the released size ------------------------------------------------------------------------------------------------


def full_size_pair(dtype: torch.dtype = torch.float32) -> tuple[ReferenceReranker, RerankerModel]:
    """Reference and ours with the same random weights of the released size, in the same memory."""
    config = RerankerConfig()
    with torch.device("meta"):
        reference, model = ReferenceReranker(config).to(dtype), RerankerModel(config)
    reference.to_empty(device="cpu")
    for module in reference.modules():  # tables that are computed, not stored
        if "compute" in " ".join(dir(module)) and hasattr(module, "inv_freq"):
            name = "compute_axial_rope_parameters" if "Vision" in type(module).__name__ else "compute_default_rope_parameters"
            frequencies, _ = type(module).__dict__[name].__func__(module.config)
            module.inv_freq = torch.nn.Buffer(frequencies, persistent=False)
            module.original_inv_freq = torch.nn.Buffer(frequencies.clone(), persistent=False)
    fill_full_size(reference)
    share(reference, model)
    return reference.eval(), model.eval()


def fill_full_size(module: nn.Module) -> None:
    """Standard deviation 0.02, norms near 1, biases not zero: uniform numbers, which are quick to draw."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            width = 0.02 * 3**0.5
            parameter.uniform_(-width, width, generator=generator)
            if name.endswith("weight") and ("norm" in name or "ln_q" in name):
                parameter.add_(1.0)


def renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors whose names begin with one of these, under the name that belongs to it."""
    return {new + key[len(old) :]: value for key, value in state.items() for old, new in names.items() if key.startswith(old)}


def share(reference: ReferenceReranker, model: RerankerModel) -> None:
    """Give ours the reference's weights, without a copy."""
    model.load_state_dict(renamed(reference.state_dict(), OURS), strict=True, assign=True)


def share_back(model: RerankerModel, reference: ReferenceReranker) -> None:
    """Give the reference our weights, without a copy."""
    theirs = {ours: name for name, ours in OURS.items()}
    missing, unexpected = reference.load_state_dict(renamed(model.state_dict(), theirs), strict=False, assign=True)
    assert not unexpected
    assert all("inv_freq" in key for key in missing)


def from_pretrained(folder: Path) -> ReferenceReranker:
    """The backbone through transformers' own from_pretrained in bfloat16, the head beside it."""
    found = ReferenceReranker.__new__(ReferenceReranker)
    nn.Module.__init__(found)
    config = RerankerConfig.load(folder)
    found.model = Qwen2VLModel.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa")
    hidden = config.decoder.hidden_size
    found.score = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)).bfloat16()
    found.image_token_id = config.image_token_id
    return found.eval()
