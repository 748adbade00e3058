"""The decoder: a Qwen2 language model (Yang et al. 2024) read as an encoder of pairs.

Pre-norm blocks with RMSNorm, grouped-query attention with biases on query, key and value, SwiGLU, and M-RoPE. There is
no vocabulary projection: the score is read from the last token's hidden state.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from m0.model.attention import Attend, Packing
from m0.model.config import DecoderConfig
from m0.model.fused import RMSNorm, Rotate, SwiGLU
from m0.model.linear import Linear
from m0.model.rotary import Rotation, decoder_rotation

KeysValues = tuple[Tensor, Tensor]
"""What one layer's attention reads: keys (rotated) and values, each (tokens, key/value heads, head_dim)."""


class Attention(nn.Module):
    """Causal grouped-query attention (Ainslie et al. 2023) with rotary positions."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.q_proj = Linear(config.hidden_size, config.num_heads * config.head_dim)
        self.k_proj = Linear(config.hidden_size, config.num_kv_heads * config.head_dim)
        self.v_proj = Linear(config.hidden_size, config.num_kv_heads * config.head_dim)
        self.o_proj = Linear(config.num_heads * config.head_dim, config.hidden_size, bias=False)
        self.rotate, self.attend = Rotate(), Attend()

    def keys_values(self, x: Tensor, rotation: Rotation) -> KeysValues:
        """Keys, rotated, and values of x, (tokens, hidden): each (tokens, key/value heads, head_dim)."""
        key = self.k_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim))
        value = self.v_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim))
        return self.rotate(key, rotation), value

    def forward(
        self, x: Tensor, rotation: Rotation, packing: Packing, last_only: bool, past_key_values: KeysValues | None = None
    ) -> Tensor:
        """(tokens, hidden) -> (tokens, hidden), or with `last_only` (sequences, hidden): the last token of each alone.

        `past_key_values`: keys and values of the packing's cached sequences, which were computed earlier; None: it has none.
        """
        queried = x[packing.last_rows] if last_only else x
        queried_rotation = (rotation[0][packing.last_rows], rotation[1][packing.last_rows]) if last_only else rotation
        query = self.q_proj(queried).unflatten(-1, (self.num_heads, self.head_dim))  # (tokens, heads, head_dim)
        query = self.rotate(query, queried_rotation)
        key, value = self.keys_values(x, rotation)
        if past_key_values is not None:
            key, value = torch.cat([past_key_values[0], key]), torch.cat([past_key_values[1], value])
        return self.o_proj(self.attend(query, key, value, packing, last_only).flatten(1))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act = SwiGLU()

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, hidden) -> (tokens, hidden)."""
        return self.down_proj(self.act(self.gate_proj(x), self.up_proj(x)))


class DecoderLayer(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream (Yang et al. 2024, Qwen2)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)
        self.between = nn.Identity()  # the residual stream between attention and MLP (resid_mid), for hooks

    def forward(
        self,
        x: Tensor,
        rotation: Rotation,
        packing: Packing,
        last_only: bool = False,
        past_key_values: KeysValues | None = None,
    ) -> Tensor:
        """(tokens, hidden) -> (tokens, hidden), or with `last_only` (sequences, hidden): the last token of each alone."""
        attended = self.self_attn(self.input_layernorm(x), rotation, packing, last_only, past_key_values)
        x = self.between((x[packing.last_rows] if last_only else x) + attended)
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x


class Decoder(nn.Module):
    """Token embeddings, all layers and the last norm (Yang et al. 2024, Qwen2), without a vocabulary projection."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor,
        packing: Packing,
        last_only: bool = True,
        past_key_values: Sequence[KeysValues] | None = None,
        num_layers: int | None = None,
    ) -> Tensor:
        """Read packed sequences.

        Args:
            embeddings: (tokens, hidden), text and visual tokens in place.
            positions: M-RoPE positions, (3, tokens).
            packing: where the sequences lie.
            last_only: compute the last layer's queries, output and MLP for the last token of each sequence only.
            past_key_values: for each layer the keys and values of `packing`'s cached sequences, as `keys_values` gave them; None: it has none.
            num_layers: stop after so many layers; None: after all.

        Returns: hidden states after the last norm, (sequences, hidden), or (tokens, hidden) where not `last_only`.
        """
        rotation = self._rotation(positions, embeddings.dtype)
        x = embeddings
        layers = self.layers[:num_layers]
        for number, layer in enumerate(layers):
            last = number == len(layers) - 1
            x = layer(x, rotation, packing, last and last_only, None if past_key_values is None else past_key_values[number])
        return self.norm(x)

    def keys_values(self, embeddings: Tensor, positions: Tensor, packing: Packing) -> list[KeysValues]:
        """Each layer's keys and values of these sequences, (tokens, key/value heads, head_dim), for others that continue them later.
        Arguments as for `forward`."""
        rotation = self._rotation(positions, embeddings.dtype)
        x, key_values = embeddings, []
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, DecoderLayer)
            key_values.append(layer.self_attn.keys_values(layer.input_layernorm(x), rotation))
            if number < len(self.layers) - 1:
                x = layer(x, rotation, packing)
        return key_values

    def _rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        config = self.config
        return decoder_rotation(positions, config.head_dim, config.rope_theta, config.mrope_section, dtype)
