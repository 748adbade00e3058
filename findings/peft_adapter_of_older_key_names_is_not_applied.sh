#!/bin/sh
# peft 0.21.2 with transformers 5.24.0 (torch 2.13.0): PeftModel.from_pretrained reads a LoRA adapter of Qwen2-VL whose keys are those
# that transformers <= 4.51 wrote ("model.model.layers.N...") and applies none of it. There is a warning and no error; the scores are
# those of the base model. The same file with today's names ("model.model.language_model.layers.N...") is applied. A vision-language retriever
# or reranker that was published as an adapter before mid-2025 can so lose all of its training without anything failing.
#
# Seen: with the older names 0 of 4 lora_B matrices are filled and the output is the base model's to the last bit;
#       with today's names 4 of 4 are filled and it differs.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0
"$folder/venv/bin/python" -m pip install --quiet transformers==5.24.0 peft==0.21.2 safetensors==0.8.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import json
import pathlib
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

warnings.simplefilter("ignore")
text = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=64, vocab_size=200, bos_token_id=1, eos_token_id=2,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]})
vision = dict(depth=1, embed_dim=32, num_heads=2, hidden_size=32)


def base():
    torch.manual_seed(0)
    config = Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=190, video_token_id=191,
                           vision_start_token_id=192, vision_end_token_id=193)
    return Qwen2VLForConditionalGeneration(config).eval()


ids = torch.arange(12)[None] + 5
with torch.no_grad():
    plain = base()(input_ids=ids).logits
trained = get_peft_model(base(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], exclude_modules=".*visual.*"))
with torch.no_grad():
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            parameter.fill_(0.5)
trained.save_pretrained("new")
pathlib.Path("old").mkdir()
tensors = load_file("new/adapter_model.safetensors")
save_file({key.replace("model.language_model.layers", "model.layers"): value for key, value in tensors.items()}, "old/adapter_model.safetensors")
pathlib.Path("old/adapter_config.json").write_text(pathlib.Path("new/adapter_config.json").read_text())
print("keys:", sorted(tensors)[0], "|", sorted(load_file("old/adapter_model.safetensors"))[0])
found = {}
for name in ("old", "new"):
    model = PeftModel.from_pretrained(base(), name).eval()
    matrices = [value for key, value in model.named_parameters() if "lora_B" in key]
    with torch.no_grad():
        same = torch.equal(model(input_ids=ids).logits, plain)
    found[name] = (sum(bool(value.any()) for value in matrices), len(matrices), same)
    print(f"{name} names: {found[name][0]} of {found[name][1]} matrices filled, output equal to the base model's: {same}")
assert found == {"old": (0, 4, True), "new": (4, 4, False)}, found
PYTHON
echo "as described"
