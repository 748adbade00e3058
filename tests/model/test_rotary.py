"""Positions by hand, and rotations against complex multiplication."""

import torch

from m0.model.rotary import decoder_rotation, mrope_positions, patch_positions, rotate, vision_rotation


def test_patches_are_stored_block_by_block():
    assert patch_positions((2, 4), 2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]]


def test_a_picture_between_texts():
    positions = mrope_positions([2, (2, 3), 2])
    assert positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]


def test_nothing_has_no_positions():
    assert mrope_positions([]).shape == (3, 0)


def as_complex(x):
    first, second = x.double().chunk(2, dim=-1)
    return torch.complex(first, second)


def test_decoder_rotation_is_multiplication_by_a_phase():
    positions = mrope_positions([3, (2, 2), 4])
    sections, theta = (2, 3, 3), 1e6
    rotation = decoder_rotation(positions, 16, theta, sections, torch.float64)
    x = torch.randn(positions.shape[1], 5, 16, dtype=torch.float64)
    axis = torch.repeat_interleave(torch.arange(3), torch.tensor(sections))
    frequency = theta ** (-torch.arange(8, dtype=torch.float64) / 8)
    angle = positions[axis].T * frequency  # (tokens, pairs)
    expected = as_complex(x) * torch.exp(1j * angle)[:, None, :]
    torch.testing.assert_close(as_complex(rotate(x, rotation)), expected, rtol=0, atol=1e-5)


def test_vision_rotation_gives_half_of_the_pairs_to_rows_and_half_to_columns():
    rotation = vision_rotation([(2, 2), (4, 2)], 8, 1e4, 2, torch.float64, torch.device("cpu"))
    positions = torch.cat([patch_positions((2, 2), 2), patch_positions((4, 2), 2)]).double()
    frequency = 1e4 ** (-torch.arange(2, dtype=torch.float64) / 2)
    angle = torch.cat([positions[:, :1] * frequency, positions[:, 1:] * frequency], dim=1)
    x = torch.randn(12, 3, 8, dtype=torch.float64)
    expected = as_complex(x) * torch.exp(1j * angle)[:, None, :]
    torch.testing.assert_close(as_complex(rotate(x, rotation)), expected, rtol=0, atol=1e-6)
