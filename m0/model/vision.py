"""The vision tower: patches of all pictures, end to end -> visual tokens of the decoder's width.

PatchEmbed -> VisionBlock x depth -> PatchMerger. A ViT (Dosovitskiy et al. 2021) as trained for Qwen2-VL (Wang et al.
2024): pictures of any size, positions by 2-D rotary, full attention inside each picture and none across pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from m0.model.attention import Attend, Packing
from m0.model.config import VisionConfig
from m0.model.fused import QuickGELU, Rotate
from m0.model.linear import Linear
from m0.model.rotary import Grid, Rotation, vision_rotation, working_dtype


class PatchKernel(nn.Conv3d):
    """A convolution whose kernel covers the whole patch: a matrix product."""

    def forward(self, patches: Tensor) -> Tensor:
        """(patches, 1176) -> (patches, hidden)."""
        return F.linear(patches, self.weight.flatten(1))


class PatchEmbed(nn.Module):
    """One linear map from a flattened patch to the tower's width (Dosovitskiy et al. 2021).

    The checkpoint keeps it as a 3-D convolution's kernel.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = PatchKernel(config.in_channels, config.hidden_size, kernel, stride=kernel, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        """(patches, 1176) -> (patches, hidden)."""
        return self.proj(patches.to(self.proj.weight.dtype))


class VisionAttention(nn.Module):
    """Multi-head attention inside each picture, with 2-D rotary positions (Wang et al. 2024, Qwen2-VL)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = Linear(config.hidden_size, config.hidden_size)
        self.rotate, self.attend = Rotate(), Attend()

    def forward(self, x: Tensor, rotation: Rotation, packing: Packing) -> Tensor:
        """(patches, hidden) -> (patches, hidden)."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(1)  # each (patches, heads, head_dim)
        # Rotated in float32 whatever the model's type, then rounded back: this order is the reference's.
        query, key = self.rotate(query, rotation), self.rotate(key, rotation)
        return self.proj(self.attend(query, key, value, packing).flatten(1))


class VisionMLP(nn.Module):
    """fc1 -> QuickGELU -> fc2 (Dosovitskiy et al. 2021)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.mlp_size)
        self.fc2 = Linear(config.mlp_size, config.hidden_size)
        self.act = QuickGELU()

    def forward(self, x: Tensor) -> Tensor:
        """(patches, hidden) -> (patches, hidden)."""
        return self.fc2(self.act(self.fc1(x)))


class VisionBlock(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream (Dosovitskiy et al. 2021)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.attn = VisionAttention(config)
        self.mlp = VisionMLP(config)
        self.between = nn.Identity()  # the residual stream between attention and MLP (resid_mid), for hooks

    def forward(self, x: Tensor, rotation: Rotation, packing: Packing) -> Tensor:
        """(patches, hidden) -> (patches, hidden)."""
        x = self.between(x + self.attn(self.norm1(x), rotation, packing))
        x = x + self.mlp(self.norm2(x))
        return x


class PatchMerger(nn.Module):
    """2x2 neighbouring patches side by side -> one visual token, projected to the decoder's width (Wang et al. 2024, Qwen2-VL)."""

    def __init__(self, config: VisionConfig, output_size: int) -> None:
        super().__init__()
        self.merged_size = config.merged_size
        self.ln_q = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = nn.Sequential(Linear(self.merged_size, self.merged_size), nn.GELU(), Linear(self.merged_size, output_size))

    def forward(self, x: Tensor) -> Tensor:
        """(patches, hidden) -> (patches / 4, output)."""
        # Patches come ordered so that the four of a 2x2 block follow one another: merging is a reshape.
        return self.mlp(self.ln_q(x).reshape(-1, self.merged_size))


class VisionTower(nn.Module):
    """Patches of pictures of any size -> visual tokens of the decoder's width (Wang et al. 2024, Qwen2-VL)."""

    def __init__(self, config: VisionConfig, output_size: int) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config, output_size)

    def forward(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Encode any number of pictures.

        Args:
            patches: all pictures' flattened patches end to end, (patches, 1176), 2x2 blocks first (see `m0.inputs.images`).
            grids: rows and columns of patches of each picture.

        Returns: visual tokens, (patches / 4, decoder width), picture after picture, row by row.
        """
        config, dtype = self.config, self.patch_embed.proj.weight.dtype
        rotation = vision_rotation(
            grids, config.head_dim, config.rope_theta, config.spatial_merge_size, working_dtype(dtype), patches.device
        )
        packing = Packing([rows * columns for rows, columns in grids], causal=False, device=patches.device)
        x = self.patch_embed(patches)
        for block in self.blocks:
            x = block(x, rotation, packing)
        return self.merger(x)
