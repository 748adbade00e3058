"""Rotary positions: where a patch stands in its picture, where a token stands in its sequence.

A rotary embedding turns the pair (x[j], x[j + d/2]) of a head by an angle `position * theta ** (-2j / d)`, so that the
dot product of a query and a key depends only on how far apart they are (Su et al. 2021, RoFormer). The vision tower
gives half of the pairs to the row and half to the column. The decoder's M-RoPE (Wang et al. 2024, Qwen2-VL) splits the
pairs into sections for time, row and column; for text the three are equal and it is ordinary rotary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Grid = tuple[int, int]
"""Rows and columns of a picture: of patches for the vision tower, of visual tokens (2x2 patches) for the decoder."""
Rotation = tuple[Tensor, Tensor]
"""Cosine, and sine with the sign that it takes in each half (first minus, second plus), each (tokens, head_dim)."""


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which angles, norms and softmax are computed: float32, or float64 in a float64 model."""
    return torch.promote_types(dtype, torch.float32)


def _inverse_frequencies(dim: int, theta: float, device: torch.device) -> Tensor:
    """theta ** (-2j / dim) for j = 0 .. dim/2 - 1, in float32 as in training: (dim / 2,)."""
    return 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim))


def patch_positions(grid: Grid, merge: int, device: torch.device | None = None) -> Tensor:
    """Row and column of every patch, in the order patches are stored: the merge x merge block first. (rows * columns, 2)."""
    rows, columns = grid
    cells = torch.stack(
        torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"), dim=-1
    )
    cells = cells.reshape(rows // merge, merge, columns // merge, merge, 2).transpose(1, 2)  # blocks, then inside a block
    return cells.reshape(-1, 2)


def vision_rotation(
    grids: Sequence[Grid], head_dim: int, theta: float, merge: int, dtype: torch.dtype, device: torch.device
) -> Rotation:
    """Rotation of every patch of every picture, end to end: each part (patches, head_dim), in `dtype`."""
    positions = torch.cat([patch_positions(grid, merge, device) for grid in grids])  # (patches, 2)
    angles = positions[:, :, None].to(dtype) * _inverse_frequencies(head_dim // 2, theta, device).to(dtype)
    return _cosine_sine(angles.flatten(1))  # rows' pairs, then columns' pairs


def mrope_positions(runs: Sequence[int | Grid]) -> Tensor:
    """Time, row and column position of every token of one sequence, (3, tokens), int64.

    `runs` describes the sequence: a number is that many text tokens, a grid is a picture of rows x columns visual
    tokens. Text advances all three by one a token. A picture that starts at p has (p, p + row, p + column), and what
    follows continues at p + max(rows, columns).
    """
    start, parts = 0, []
    for run in runs:
        if isinstance(run, int):
            parts.append(torch.arange(start, start + run).expand(3, run))
            start += run
        else:
            rows, columns = run
            time = torch.zeros(rows, columns, dtype=torch.long)
            row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            parts.append(start + torch.stack([time, row, column]).flatten(1))
            start += max(rows, columns)
    return torch.cat(parts, dim=1) if parts else torch.zeros(3, 0, dtype=torch.long)


def decoder_rotation(positions: Tensor, head_dim: int, theta: float, sections: Sequence[int], dtype: torch.dtype) -> Rotation:
    """Rotation of every token from its M-RoPE positions (3, tokens): each part (tokens, head_dim), in `dtype`.

    Angles are computed in float32 (float64 for a float64 model) and rounded to `dtype` only as cosine and sine.
    """
    working = working_dtype(dtype)
    angles = positions[:, :, None].to(working) * _inverse_frequencies(head_dim, theta, positions.device).to(working)
    parts = angles.split(list(sections), dim=-1)
    cosine, sine = _cosine_sine(torch.cat([part[axis] for axis, part in enumerate(parts)], dim=-1))
    return cosine.to(dtype), sine.to(dtype)


def _cosine_sine(angles: Tensor) -> Rotation:
    """`angles`: of each pair, (tokens, head_dim / 2)."""
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([cosine, cosine], dim=-1), torch.cat([-sine, sine], dim=-1)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn every head of x (tokens, heads, head_dim) by its token's angles."""
    cosine, sine = (part[:, None, :] for part in rotation)
    swapped = x.roll(x.shape[-1] // 2, -1)  # the other number of each pair
    return x * cosine + swapped * sine
