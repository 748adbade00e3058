"""Modules by their old names: the same things, with a warning that says where they are now."""

import importlib
import sys
import warnings

import pytest

from m0._moved import MOVED, RENAMED
from tests.conftest import noise

NAMES = {
    "attention": "Packing", "batch": "Batch", "calls": "CallLock", "cascade": "Cascade", "checkpoint": "load_image_settings",
    "config": "RerankerConfig", "decoder": "Decoder", "documents": "DocumentCache", "fused": "fuse", "head": "relevance",
    "hub": "locate", "images": "prepare_picture", "linear": "Linear", "lora": "LoRAConfig", "mapped": "release_pages",
    "parallel": "processes", "prompt": "read_parts", "quantize": "has_kernels", "rotary": "mrope_positions",
    "tensor_parallel": "split", "vision": "VisionTower",
}  # fmt: skip
"""Of each old module one thing that was documented."""


def test_every_old_name_is_tried():
    assert set(NAMES) == set(MOVED)


@pytest.mark.parametrize("old", MOVED)
def test_an_old_module_gives_the_new_ones_things(old):
    sys.modules.pop(f"m0.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"m0.{old} is now m0.{MOVED[old][0]}") as caught:
        module = importlib.import_module(f"m0.{old}")
    assert len(caught) == 1
    found = getattr(module, NAMES[old])
    assert any(getattr(importlib.import_module(f"m0.{new}"), NAMES[old], None) is found for new in MOVED[old])
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        _ = module.nothing_of_that_name


def test_the_warning_names_the_line_that_imports():
    sys.modules.pop("m0.images", None)
    with pytest.warns(DeprecationWarning, match="m0.images") as caught:
        from m0.images import ImageSettings
    assert caught[0].filename == __file__
    assert ImageSettings is importlib.import_module("m0.inputs.images").ImageSettings


def test_the_model_and_the_public_names_need_no_warning():
    import m0

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from m0.model import RerankerModel

        assert RerankerModel is m0.RerankerModel
        for name in m0.__all__:
            assert getattr(m0, name) is not None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("m0.nothing_of_that_name")


def test_renamed_things_are_found_by_their_old_names():
    sys.modules.pop("m0.batch", None)
    with pytest.warns(DeprecationWarning, match="m0.batch"):
        from m0.batch import DocumentState
    from m0.engine.batch import CachedPrefix

    assert DocumentState is CachedPrefix


def test_renamed_names_of_explanations_work_with_a_warning(nano):
    import m0.explain

    with pytest.warns(DeprecationWarning, match="beside_ranking is now note_ranking_score") as caught:
        assert m0.explain.beside_ranking is m0.explain.note_ranking_score
    assert caught[0].filename == __file__
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        _ = m0.explain.nothing_of_that_name
    picture = {"image": noise(56, 56)}
    explanation = nano.explain("a heart", picture, "gradient_input", pixels=True)
    for thing in (explanation, explanation.pictures[0]):
        with pytest.warns(DeprecationWarning, match="fine is now pixel_relevance") as caught:
            assert thing.fine is thing.pixel_relevance is not None
        assert caught[0].filename == __file__


@pytest.mark.parametrize("old", RENAMED)
def test_every_renamed_thing_exists(old):
    places = [importlib.import_module(f"m0.{new}") for homes in MOVED.values() for new in homes]
    assert any(hasattr(place, RENAMED[old]) for place in places)
    assert not any(hasattr(place, old) for place in places)
