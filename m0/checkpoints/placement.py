"""Where a model's weights go, and in which type they compute there."""

from __future__ import annotations

from pathlib import Path

import torch

from m0.checkpoints.files import list_tensors
from m0.errors import InputError


def parse_device(device: str | torch.device | None) -> torch.device:
    """The device that a user names; None: the GPU if there is one. Raises InputError where it cannot be used."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError(f"device is {device!r}, but must be such as 'cpu' or 'cuda:0'.") from None
    if found.type == "meta":
        raise InputError("device is 'meta', which holds no weights to score with.")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device is {str(device)!r}, but PyTorch finds no GPU here.")
    try:
        torch.empty(1, device=found)
    except Exception as error:  # each kind of device that is not there has an error of its own
        why = str(error).splitlines()[0].partition(". ")[0][:200].rstrip(".")
        raise InputError(f"device is {str(device)!r}, which PyTorch cannot use here: {why}.") from None
    return found


def parse_dtype(dtype: str | torch.dtype | None, device: torch.device, directory: Path) -> torch.dtype | None:
    if dtype is not None and dtype != "auto":
        return dtype_by_name(dtype)
    if device.type == "cuda":
        return torch.bfloat16
    return None if has_native_bfloat16() and is_stored_in_bfloat16(directory) else torch.float32


def dtype_by_name(dtype: str | torch.dtype) -> torch.dtype:
    names = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if (found := names.get(str(dtype).removeprefix("torch."))) is None:
        raise InputError(f"dtype is {dtype!r}, but must be one of {list(names)}, or None.")
    return found


def has_native_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 natively; where it does not, float32 is faster and more exact."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())


def is_stored_in_bfloat16(directory: Path) -> bool:
    return all(tensor.type == "BF16" for tensor in list_tensors(directory))
