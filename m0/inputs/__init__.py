"""What a user hands in, made ready for the model: pictures to pixels, texts to tokens that know where they came from."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m0.inputs.pages import read_pages as read_pages

__all__ = ["read_pages"]


def __getattr__(name: str) -> Any:
    """Imported when first asked for."""
    if name in __all__:
        return getattr(import_module("m0.inputs.pages"), name)
    raise AttributeError(f"module 'm0.inputs' has no attribute {name!r}")
