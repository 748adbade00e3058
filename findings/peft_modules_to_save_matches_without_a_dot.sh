#!/bin/sh
# peft 0.21.2 with transformers 5.24.0 (torch 2.13.0): the names in LoraConfig's modules_to_save are matched with str.endswith, without the
# dot that target_modules wants before a name. modules_to_save=["norm"], which reads as the last norm, so also takes every module whose
# name ends in those letters: each layer's input_layernorm and post_attention_layernorm are trained and saved in full. There is no warning.
# With a dot in front, or its parent's name, only the last norm is taken. The other way round, a longer name as transformers <= 4.51 had it,
# "model.layers.1.mlp", still finds "model.language_model.layers.1.mlp", where in target_modules it is an error.
#
# Seen, for a tiny Qwen2-VL of 2 layers with LoRA of 448 parameters: modules_to_save=["norm"] wraps 5 modules and makes 608 parameters
#       trainable, ["language_model.norm"] and [".norm"] wrap 1 and make it 480; the saved file holds the same modules.
#       ["model.layers.1.mlp"] wraps model.language_model.layers.1.mlp, 6592 parameters; target_modules=["model.layers.1.mlp.up_proj"]
#       raises "not found".
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0
"$folder/venv/bin/python" -m pip install --quiet transformers==5.24.0 peft==0.21.2 safetensors==0.8.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import warnings

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

text = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=64, vocab_size=200,
            bos_token_id=1, eos_token_id=2, rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]})
vision = dict(depth=1, embed_dim=32, num_heads=2, hidden_size=32)


def base():
    torch.manual_seed(0)
    config = Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=190, video_token_id=191,
                           vision_start_token_id=192, vision_end_token_id=193)
    return Qwen2VLForConditionalGeneration(config).eval()


found = {}
for name in (None, "norm", ".norm", "language_model.norm", "model.layers.1.mlp"):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = get_peft_model(base(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], exclude_modules=".*visual.*",
                                                  modules_to_save=name and [name]))
    assert not any("modules_to_save" in str(warning.message) or "norm" in str(warning.message) for warning in caught), caught
    trainable = {key: value.numel() for key, value in model.named_parameters() if value.requires_grad}
    wrapped = sorted({key.split(".modules_to_save")[0].removeprefix("base_model.model.")
                      for key in trainable if "modules_to_save" in key})
    model.save_pretrained("saved")
    saved = [key.removeprefix("base_model.model.") for key in load_file("saved/adapter_model.safetensors") if "lora_" not in key]
    assert all(any(key.startswith(module + ".") for module in wrapped) for key in saved)
    assert all(any(key.startswith(module + ".") for key in saved) for module in wrapped)
    found[name] = (len(wrapped), sum(trainable.values()))
    print(f"modules_to_save={name and [name]}: {found[name][1]} trainable parameters, wrapped and saved: {wrapped}")
    if name == "norm":
        assert sum(module.endswith("_layernorm") for module in wrapped) == 4
    if name == "model.layers.1.mlp":
        assert wrapped == ["model.language_model.layers.1.mlp"]
assert found == {None: (0, 448), "norm": (5, 608), ".norm": (1, 480), "language_model.norm": (1, 480), "model.layers.1.mlp": (1, 6592)}, found
try:
    get_peft_model(base(), LoraConfig(r=2, target_modules=["model.layers.1.mlp.up_proj"]))
except ValueError as error:
    print("target_modules=['model.layers.1.mlp.up_proj']:", error)
    assert "not found in the base model" in str(error)
else:
    raise AssertionError("target_modules matched")
PYTHON
echo "as described"
