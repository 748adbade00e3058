"""Fixtures: a tiny random model in the released architecture, the two tokenizers, and pictures to look at."""

from __future__ import annotations

import lzma
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m0 import DecoderConfig, Reranker, RerankerConfig, RerankerModel, VisionConfig
from m0.checkpoints.files import save_checkpoint
from m0.inputs.images import ImageSettings
from m0.inputs.prompt import PromptEncoder, load_tokenizer

NANO = Path(__file__).parent.parent / "weights" / "m0-nano"
QWEN2 = Path(__file__).parent / "data" / "qwen2-tokenizer.json.xz"


def pytest_configure(config) -> None:
    """Models go to a GPU by themselves, and in 16 bits; what these tests say is said of the CPU."""
    wanted = re.sub(r"not\s+gpu", "", config.option.markexpr)
    if not re.search(r"\bgpu\b", wanted):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        raise pytest.UsageError("PyTorch finds no GPU here")


torch.set_num_threads(1)  # the models are tiny: more threads would only wait for each other


def tiny_config(**changes) -> RerankerConfig:
    """The released architecture in small: every part present, grouped heads, uneven M-RoPE sections."""
    values = {
        "vision": VisionConfig(depth=3, hidden_size=64, num_heads=2),
        "decoder": DecoderConfig(
            hidden_size=64,
            num_layers=3,
            num_heads=4,
            num_kv_heads=2,
            intermediate_size=96,
            vocab_size=512,
            mrope_section=(2, 3, 3),
        ),
        "vision_start_token_id": 508,
        "vision_end_token_id": 509,
        "image_token_id": 510,
    }
    return RerankerConfig(**{**values, **changes})


def fill_randomly(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights of realistic scale: std 0.02 to 0.05, norms near 1, biases not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.02 + 0.03 * (number % 7) / 6, generator=generator)
            elif "norm" in name or "ln_q" in name:
                centre = 1.0 if name.endswith("weight") else 0.0
                parameter.normal_(centre, 0.05, generator=generator)
            else:
                parameter.normal_(0.0, 0.03, generator=generator)


@pytest.fixture
def config() -> RerankerConfig:
    return tiny_config()


@pytest.fixture
def model(config) -> RerankerModel:
    model = RerankerModel(config)
    fill_randomly(model)
    return model.eval()


@pytest.fixture(scope="session")
def qwen2_tokenizer_file(tmp_path_factory) -> Path:
    """The Qwen2 tokenizer (Apache-2.0), which the released model uses."""
    path = tmp_path_factory.mktemp("qwen2") / "tokenizer.json"
    path.write_bytes(lzma.decompress(QWEN2.read_bytes()))
    return path


@pytest.fixture(scope="session")
def qwen2_prompt(qwen2_tokenizer_file) -> PromptEncoder:
    """The released model's prompt, as far as a tokenizer goes."""
    return PromptEncoder(load_tokenizer(qwen2_tokenizer_file), RerankerConfig())


@pytest.fixture(scope="session")
def nano_prompt() -> PromptEncoder:
    return PromptEncoder(load_tokenizer(NANO / "tokenizer.json"), RerankerConfig.load(NANO))


@pytest.fixture(scope="session")
def nano() -> Reranker:
    return Reranker.from_pretrained("m0-nano")


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory) -> Path:
    """A checkpoint directory of a tiny random model with m0-nano's tokenizer."""
    nano = RerankerConfig.load(NANO)
    small = tiny_config()
    config = nano.replace(
        vision=small.vision,
        decoder=DecoderConfig(**{**vars(small.decoder), "vocab_size": nano.decoder.vocab_size}),
    )
    model = RerankerModel(config)
    fill_randomly(model, seed=3)
    directory = tmp_path_factory.mktemp("tiny") / "model"
    save_checkpoint(model, directory, tokenizer_file=NANO / "tokenizer.json")
    return directory


@pytest.fixture(scope="session")
def tiny(tiny_directory) -> Reranker:
    return Reranker.from_pretrained(tiny_directory, dtype="float32")


@pytest.fixture(scope="session")
def settings() -> ImageSettings:
    return ImageSettings()


def final_states(reranker, pairs):
    """What the head is given, (pairs, width): random weights score all pairs much alike, so scores hardly show what goes wrong."""
    seen = []
    hook = reranker.model.head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach().double()))
    try:
        reranker.logits(pairs)
    finally:
        hook.remove()
    return torch.cat(seen)


def apart(found, expected):
    """Distance as a share of the length; about 1.4 for states that have nothing to do with each other."""
    return float((found - expected).norm() / expected.norm())


def noise(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """A picture with smooth colours and grain, so that every way of resizing shows."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / (7 + c)) + np.cos(y / (11 + c)) for c in range(3)], axis=-1)
    grain = generator.normal(0, 20, (height, width, 3))
    pixels = np.clip(128 + 55 * waves + grain, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)
