"""Adapters against peft: outputs, merged weights, and files in both directions."""

from __future__ import annotations

import pytest
import torch

from m0 import LoRAConfig
from m0.checkpoints.adapters.switching import Adapters
from m0.model.reranker_model import RerankerModel
from m0.model.rotary import mrope_positions
from tests.conftest import fill_randomly, tiny_config

peft = pytest.importorskip("peft", reason="needs the extra 'parity'")
from tests.parity.reference import ReferenceReranker

KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "rslora+dora": {"use_rslora": True, "use_dora": True},
}
TARGETS = ["q_proj", "v_proj", "down_proj", "qkv", "fc2"]  # decoder and vision tower
NAMES = {"model.language_model.": "decoder.", "model.visual.": "vision.", "score.": "head."}


def twins():
    config = tiny_config()
    reference = ReferenceReranker(config).eval()
    fill_randomly(reference, seed=2)
    model = RerankerModel(config).eval()
    model.load_state_dict({ours_name(key): value.clone() for key, value in reference.state_dict().items()})
    return reference, model


def ours_name(key: str) -> str:
    for theirs, ours in NAMES.items():
        if key.startswith(theirs):
            return ours + key[len(theirs) :]
    raise KeyError(key)


def question():
    generator = torch.Generator().manual_seed(4)
    config = tiny_config()
    ids = torch.cat(
        [torch.randint(1, 500, (5,), generator=generator), torch.full((6,), config.image_token_id), torch.arange(20, 29)]
    )
    patches = torch.randn(24, config.vision.patch_dim, generator=generator)
    return ids, patches, [(4, 6)], mrope_positions([5, (2, 3), 9])


def scores(reference, model):
    ids, patches, grids, positions = question()
    with torch.no_grad():
        return reference([ids], patches, grids), model(ids, positions, [len(ids)], patches, grids)


def train_a_little(reference):
    """Any adapter that is not the zero it starts as."""
    generator = torch.Generator().manual_seed(9)
    for name, parameter in reference.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            with torch.no_grad():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def peft_config(**options):
    return peft.LoraConfig(r=4, lora_alpha=12, target_modules=TARGETS, modules_to_save=["score"], **options)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_peft_gives_the_same_logits_here(tmp_path, kind):
    reference, model = twins()
    wrapped = peft.get_peft_model(reference, peft_config(**KINDS[kind])).eval()
    train_a_little(wrapped)
    wrapped.save_pretrained(tmp_path / "theirs")
    before = scores(reference, model)
    adapters = Adapters(model)
    adapters.load(tmp_path / "theirs")
    theirs, ours = scores(wrapped, model)
    assert (theirs - before[1]).abs().max() > 1e-3, "the adapter must matter for the comparison to mean anything"
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)

    adapters.merge()
    merged = wrapped.merge_and_unload()
    weights = dict(model.named_parameters())
    for name, value in merged.state_dict().items():
        torch.testing.assert_close(weights[ours_name(name)].data, value, rtol=0, atol=1e-5)
    torch.testing.assert_close(scores(merged, model)[1], ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_ours_gives_the_same_logits_in_peft(tmp_path, kind):
    reference, model = twins()
    adapters = Adapters(model)
    options = {**KINDS[kind], "rank_pattern": {"down_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 20}}
    adapters.add("mine", LoRAConfig(r=3, alpha=7, target_modules=tuple(TARGETS), modules_to_save=("score",), **options))
    generator = torch.Generator().manual_seed(1)
    for parameter in adapters.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.05
    adapters.save(tmp_path / "ours")

    # peft looks modules up by name: give it the names of the released model, which the file uses.
    hub = HubNames(reference)
    wrapped = peft.PeftModel.from_pretrained(hub, tmp_path / "ours").eval()
    theirs, ours = scores(wrapped, model)
    assert (ours - scores(reference, twins()[1])[1]).abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


class HubNames(torch.nn.Module):
    """The reference under the released model's module names: visual, model, score."""

    def __init__(self, reference):
        super().__init__()
        self.visual, self.model, self.score = reference.model.visual, reference.model.language_model, reference.score
        self.reference = [reference]

    def forward(self, *arguments):
        reference = self.reference[0]
        reference.score = self.score  # peft puts its own in place of it
        return reference(*arguments)
