"""The whole model: packed tokens and patches in, one ranking logit a sequence out.

    patches --PatchEmbed--> VisionBlock x 32 --PatchMerger (2x2)--> visual tokens --.
                                                                                     v
    token ids --embed_tokens--> text tokens ------------------------------> one packed stream
                                                                                     |
                                      DecoderLayer x 28 (causal, M-RoPE) <-----------'
                                                 |
                                last token's hidden state --ScoreHead--> logit; relevance = sigmoid(logit - 2.65)

Sequences are packed: their tokens lie end to end, `lengths` says where each one stops, and nothing is ever padded.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from m0.errors import InputError
from m0.model.attention import Packing
from m0.model.config import RerankerConfig
from m0.model.decoder import Decoder
from m0.model.head import ScoreHead
from m0.model.rotary import Grid
from m0.model.vision import VisionTower


class RerankerModel(nn.Module):
    """Vision tower, decoder and score head of jina-reranker-m0.

    Differentiable end to end, in float64, float32, float16 or bfloat16. Weights are whatever PyTorch initialises;
    `m0.checkpoints.files` fills them from files.
    """

    def __init__(self, config: RerankerConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTower(config.vision, output_size=config.decoder.hidden_size)
        self.decoder = Decoder(config.decoder)
        self.head = ScoreHead(config.decoder.hidden_size)

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        lengths: Sequence[int],
        patches: Tensor | None = None,
        grids: Sequence[Grid] = (),
        prefix_of: Sequence[int | None] | None = None,
        *,
        parents: Sequence[int | None] | None = None,
    ) -> Tensor:
        """Score any number of sequences, with any number of pictures in each.

        Args:
            token_ids: all sequences' tokens end to end, (tokens,), int64.
            positions: their M-RoPE positions, (3, tokens); see `m0.model.rotary.mrope_positions`.
            lengths: tokens of each sequence.
            patches: all pictures' patches end to end in the order their tokens come, (patches, 1176); None: no pictures.
            grids: rows and columns of patches of each picture.
            prefix_of: for each sequence the number of its shared prefix, an earlier one that it continues, or None (see
                `m0.model.attention`).
            parents: the old name of `prefix_of`, with a DeprecationWarning.

        Returns: logits, (sequences,). Raises InputError where tokens, lengths and pictures do not fit together, and where
        `prefix_of` is given by both names.
        """
        if parents is not None:
            warnings.warn(
                "parents is now prefix_of; the old name goes with the next version.", DeprecationWarning, stacklevel=4
            )
            if prefix_of is not None:
                raise InputError("prefix_of is given by its old name, parents, too; give it once.")
            prefix_of = parents
        if any(length < 1 for length in lengths):
            raise InputError(f"lengths are {list(lengths)}, but every sequence must have a token at least.")
        image_features = None if patches is None else self.vision(patches, grids)
        embeddings = self.embed(token_ids, image_features)
        if sum(lengths) != token_ids.shape[0]:
            raise InputError(f"lengths add up to {sum(lengths)}, but there are {token_ids.shape[0]} tokens.")
        packing = Packing(lengths, causal=True, prefix_of=prefix_of, device=token_ids.device)
        return self.head(self.decoder(embeddings, positions, packing))

    def embed(self, token_ids: Tensor, image_features: Tensor | None) -> Tensor:
        """Text tokens looked up, picture tokens (`image_token_id`) filled from the tower in order: (tokens, hidden).

        Raises InputError where there are more or fewer picture tokens than features, (visual tokens, hidden).
        """
        embeddings = self.decoder.embed_tokens(token_ids)
        is_image = token_ids == self.config.image_token_id
        places, found = int(is_image.sum()), 0 if image_features is None else image_features.shape[0]
        if places != found:
            raise InputError(f"there are {places} picture tokens, but the pictures give {found}.")
        if image_features is None:
            return embeddings
        return embeddings.masked_scatter(is_image[:, None], image_features.to(embeddings.dtype))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.decoder.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.embed_tokens.weight.device
