"""Adapters made by earlier versions of peft and transformers, compared here with the logits that these gave.

    python scripts/check_peft_versions.py [--only 0.14.0 0.17.1] [--keep FOLDER]

For each version a virtual environment is made in a temporary folder, which borrows the PyTorch that runs this script (about 0.3 GB
and two minutes for each; needs a package index). In it, adapters of many kinds are made on a tiny random model of the released
architecture, trained a step away from zero, and written with their logits for a text and for a text with a picture. m0 then reads
each and must give the same logits within 1e-5. Exit status 1 where one differs.

transformers up to 4.51 names the decoder `model` and the tower `visual`; later ones `model.language_model` and `model.visual`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path
from typing import Any

VERSIONS = {  # peft: transformers of its time
    "0.14.0": "4.48.3",
    "0.15.2": "4.51.3",
    "0.16.0": "4.53.3",
    "0.17.1": "4.56.2",
    "0.18.1": "4.57.6",
    "0.19.1": "5.4.0",
    "0.20.0": "5.15.1",
    "0.21.2": "5.24.0",
}
ACCELERATE = "1.10.1"
TOLERANCE = 1e-5
FULL = ["q_proj", "v_proj", "down_proj", "qkv", "fc2"]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dropout": {"lora_dropout": 0.3},
    "lora_bias": {"lora_bias": True},
    "lora_bias, rslora": {"lora_bias": True, "use_rslora": True},
    "ranks": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 3}},
    "alphas": {"alpha_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 30}},
    "ranks and alphas": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 30}},
    "SEQ_CLS": {"task_type": "SEQ_CLS"},
    "SEQ_CLS, score named": {"task_type": "SEQ_CLS", "modules_to_save": ["score"]},
    "TOKEN_CLS": {"task_type": "TOKEN_CLS"},
    "CAUSAL_LM": {"task_type": "CAUSAL_LM"},
    "score": {"modules_to_save": ["score"]},
    "token table": {"modules_to_save": ["embed_tokens"]},
    "every norm": {"modules_to_save": ["norm"]},
    "merger": {"modules_to_save": ["merger"], "target_modules": ["q_proj"]},
    "pattern": {"target_modules": r".*layers\.\d+\.(self_attn|mlp)\..*_proj"},
    "pattern, from the start": {"target_modules": r"model\..*layers.*_proj"},
    "all but vision": {"target_modules": r"(?!.*visual).*_proj"},
    "excluded": {"exclude_modules": r".*visual.*|.*\.2\..*"},
    "some layers": {"layers_to_transform": [0, 2]},
    "some layers of the decoder": {"layers_to_transform": [1], "layers_pattern": ["layers"]},
    "all-linear": {"target_modules": "all-linear"},
    "all-linear, SEQ_CLS": {"target_modules": "all-linear", "task_type": "SEQ_CLS"},
    "bias all": {"bias": "all"},
    "bias all, score": {"bias": "all", "modules_to_save": ["score"]},
    "bias lora_only": {"bias": "lora_only"},
    "patches": {"target_modules": ["proj"]},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "pissa, converted": {"init_lora_weights": "pissa"},
    "olora, converted": {"init_lora_weights": "olora"},
}


# --- in the version's own environment -----------------------------------------------------------------------------------


def write(folder: Path) -> None:
    """Make every kind of adapter with the peft that is installed, beside the logits that it gives once peft has read it again."""
    import peft
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    inputs = load_file(folder / "inputs.safetensors")
    for number, (kind, settings) in enumerate(KINDS.items()):
        model = _load_reference(folder)
        try:
            wrapped = _add_trained_adapter(model, settings, folder / f"{number}-first")
        except (TypeError, ValueError, AssertionError) as error:
            (folder / f"{number}.txt").write_text(f"{type(error).__name__}: {error}")
            continue
        converted = {"path_initial_model_for_weight_conversion": str(folder / f"{number}-first")}
        trained = _compute_logits(model, inputs)
        wrapped.save_pretrained(str(folder / str(number)), **(converted if "converted" in kind else {}))
        model = _load_reference(folder)
        try:
            peft.PeftModel.from_pretrained(model, str(folder / str(number))).eval()
            read = _compute_logits(model, inputs)
        except KeyError as error:  # a fault of that version's: it does not read what it has written
            (folder / f"{number}-unread.txt").write_text(str(error))
            read = {name: value.clone() for name, value in trained.items()}
        save_file({f"{name} trained": value for name, value in trained.items()} | read, folder / f"{number}.safetensors")
    save_file(_compute_logits(_load_reference(folder), inputs), folder / "plain.safetensors")


def _compute_logits(model: Any, inputs: Any) -> dict[str, Any]:
    import torch

    with torch.no_grad():
        return {name: _logits(model, inputs, name == "picture") for name in ("text", "picture")}


def _load_reference(folder: Path) -> Any:
    """transformers' own model with the vendor's head, under the names that this transformers gives it."""
    import torch
    from safetensors.torch import load_file
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    class Ranker(Qwen2VLForConditionalGeneration):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            hidden = getattr(config, "hidden_size", None) or config.text_config.hidden_size
            self.score = torch.nn.Sequential(torch.nn.Linear(hidden, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 1))

    newer = hasattr(Qwen2VLForConditionalGeneration(_config(folder, Qwen2VLConfig)).model, "language_model")
    model = Ranker(_config(folder, Qwen2VLConfig)).eval()
    state = load_file(folder / "base" / "model.safetensors")
    if newer:
        state = {_rename_key(key): value for key, value in state.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert all("lm_head" in key or "inv_freq" in key for key in missing), missing
    return model


def _config(folder: Path, kind: Any) -> Any:
    values = json.loads((folder / "base" / "config.json").read_text())
    values.pop("architectures", None)
    values.setdefault("video_token_id", 507)  # asked for by some versions
    return kind(**values)


def _rename_key(key: str) -> str:
    if key.startswith("model."):
        return f"model.language_model.{key.removeprefix('model.')}"
    return f"model.{key}" if key.startswith("visual.") else key


def _add_trained_adapter(model: Any, settings: dict[str, Any], first: Path) -> Any:
    """The model with an adapter that is not the zero it starts as. Changes the model."""
    import peft
    import torch

    settings = {"r": 4, "lora_alpha": 12, "target_modules": FULL, **settings}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
    if isinstance(start := settings.get("init_lora_weights"), str) and start in ("pissa", "olora"):
        wrapped.peft_config["default"].init_lora_weights = True
        wrapped.save_pretrained(str(first))
        wrapped.peft_config["default"].init_lora_weights = start
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return wrapped.eval()


def _logits(model: Any, inputs: Any, picture: bool) -> Any:
    """The score of one sequence, as the vendor's code computes it: the head on the last state."""
    import inspect

    import torch

    ids = inputs["picture_ids" if picture else "text_ids"][None]
    more: dict[str, Any] = {}
    if picture:
        more = {"pixel_values": inputs["patches"], "image_grid_thw": torch.tensor([[1, 4, 6]])}
        if "mm_token_type_ids" in inspect.signature(type(model).__mro__[1].forward).parameters:
            more["mm_token_type_ids"] = (ids == 510).int()
    model.model.rope_deltas = model.rope_deltas = None
    mask = torch.ones_like(ids)
    done = (
        type(model)
        .__mro__[1]
        .forward(
            model, input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True, return_dict=True, **more
        )
    )
    return model.score(done.hidden_states[-1][:, -1]).squeeze(-1).contiguous()


# --- here ----------------------------------------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """The tiny model and what it is asked, as files that need no m0 to read."""
    import torch
    from safetensors.torch import save_file

    sys.path.insert(0, str(Path(__file__).parent.parent))
    from m0 import RerankerModel
    from m0.checkpoints.files import save_checkpoint
    from tests.conftest import fill_randomly, tiny_config

    config = tiny_config()
    model = RerankerModel(config)
    fill_randomly(model, seed=2)
    save_checkpoint(model, folder / "base")
    generator = torch.Generator().manual_seed(4)
    before = torch.cat([torch.randint(1, 500, (4,), generator=generator), torch.tensor([508])])
    picture_ids = torch.cat([before, torch.full((6,), config.image_token_id), torch.tensor([509]), torch.arange(20, 29)])
    patches = torch.randn(24, config.vision.patch_dim, generator=generator)
    save_file({"text_ids": torch.arange(10, 40), "picture_ids": picture_ids, "patches": patches}, folder / "inputs.safetensors")


def make_environment(folder: Path, peft: str, transformers: str) -> Path:
    """A virtual environment with these versions, and the PyTorch that runs this script. Returns its Python."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True, capture_output=True, text=True
    )
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, f"transformers=={transformers}", "psutil"], check=True)
    subprocess.run([*pip, "--no-deps", f"peft=={peft}", f"accelerate=={ACCELERATE}"], check=True)
    # Last on the path: what the environment has itself comes first.
    Path(site.stdout.strip(), "zz_torch.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def compare(folder: Path) -> tuple[int, int, list[str]]:
    """How many adapters gave the same logits, how many kinds the version has not, and a line for each that failed."""
    import torch
    from safetensors.torch import load_file

    from m0.checkpoints.adapters.switching import Adapters
    from m0.checkpoints.files import load_checkpoint
    from m0.errors import M0Error
    from m0.model.rotary import mrope_positions

    inputs, faults, equal, absent = load_file(folder / "inputs.safetensors"), [], 0, 0

    def logits(model: Any) -> dict[str, Any]:
        text, picture = inputs["text_ids"], inputs["picture_ids"]
        with torch.no_grad():
            return {
                "text": model(text, mrope_positions([len(text)]), [len(text)]),
                "picture": model(picture, mrope_positions([5, (2, 3), 10]), [len(picture)], inputs["patches"], [(4, 6)]),
            }

    def max_difference(found: dict[str, Any], expected: dict[str, Any]) -> float:
        return max(float((found[name] - expected[name]).abs().max()) for name in found)

    plain = logits(load_checkpoint(folder / "base"))
    if (difference := max_difference(plain, load_file(folder / "plain.safetensors"))) > TOLERANCE:
        return 0, 0, [f"the model without an adapter is {difference:.1e} off"]
    for number, kind in enumerate(KINDS):
        unread = (folder / f"{number}-unread.txt").exists()
        if (folder / f"{number}.txt").exists():
            absent += 1
            faults.append(f"({kind}: peft says {(folder / f'{number}.txt').read_text().splitlines()[0][:120]})")
            continue
        model, theirs = load_checkpoint(folder / "base"), load_file(folder / f"{number}.safetensors")
        try:
            Adapters(model).load(folder / str(number), "one")
        except M0Error as error:
            absent += unread
            said = f"{kind}: refused: {str(error).replace(str(folder), '...')}"
            faults.append(f"({said} Nor does peft read it.)" if unread else said)
            continue
        trained = {name: theirs[f"{name} trained"] for name in plain}
        found = logits(model)
        difference, moved = min(max_difference(found, theirs), max_difference(found, trained)), max_difference(plain, trained)
        if (lost := max_difference(trained, theirs)) > 2 * TOLERANCE:
            like = "as trained" if max_difference(found, trained) <= TOLERANCE else "as peft"
            faults.append(f"({kind}: read again by peft, it is {lost:.1e} off what was trained; m0 computes it {like})")
        if difference > TOLERANCE or moved < 10 * TOLERANCE:
            faults.append(f"{kind}: {difference:.1e} off, moved by {moved:.1e}")
        else:
            equal += 1
    return equal, absent, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=VERSIONS, default=list(VERSIONS))
    parser.add_argument("--keep", type=Path, help="folder for environments and adapters; they stay, and are used again")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.write)
        return 0
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.keep or Path(temporary)
        for version in arguments.only:
            folder = root / version
            folder.mkdir(parents=True, exist_ok=True)
            prepare(folder)
            python = root / f"venv-{version}" / "bin" / "python"
            if not python.exists():
                python = make_environment(root / f"venv-{version}", version, VERSIONS[version])
            environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
            subprocess.run([python, __file__, "--write", folder], check=True, env=environment)
            equal, absent, faults = compare(folder)
            failed = failed or equal + absent < len(KINDS)
            print(f"peft {version}, transformers {VERSIONS[version]}: {equal} of {len(KINDS) - absent} kinds equal", flush=True)
            for fault in faults:
                print(f"    {fault}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
