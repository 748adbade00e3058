#!/bin/sh
# peft 0.20.0 with transformers 5.15.1 (torch 2.13.0): with LoraConfig(bias="lora_only") the biases of the layers that LoRA wraps are
# trained, and save_pretrained leaves them out of the file: it looks for "q_proj.bias", while the parameter is named
# "q_proj.base_layer.bias", since it lies in the wrapped layer. There is no warning on saving or on loading, and the adapter that is
# loaded gives other logits than the one that was trained. bias="all" is saved. 0.21.2 saves both; what a file of 0.20.0 lacks cannot be
# had back.
#
# Seen, for a tiny Qwen2 of 2 layers trained for 3 steps: with 0.20.0 and "lora_only" 4 biases are trained, the file has 8 keys, none of
#       them a bias, and the logits after loading differ by 0.10, where training moved them by 0.53. With "all" the 6 biases are in
#       the file and the logits are the same. With 0.21.2 the file has 12 keys, 4 of them biases, and the logits are the same.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0
"$folder/venv/bin/python" -m pip install --quiet transformers==5.15.1 safetensors==0.8.0
cd "$folder"
for version in 0.20.0 0.21.2; do
    "$folder/venv/bin/python" -m pip install --quiet peft=="$version"
    "$folder/venv/bin/python" - <<'PYTHON'
import warnings

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM


def base():
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                                        intermediate_size=64, vocab_size=200)).eval()


print("peft", peft.__version__)
right = peft.__version__ == "0.21.2"
ids = torch.arange(12)[None] + 5
found = {}
for bias in ("lora_only", "all"):
    model = get_peft_model(base(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], bias=bias))
    with torch.no_grad():
        plain = model(input_ids=ids).logits
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.save_pretrained(bias)
            loaded = PeftModel.from_pretrained(base(), bias).eval()
        after = loaded(input_ids=ids).logits
    keys = load_file(bias + "/adapter_model.safetensors")
    assert not any("bias" in str(warning.message) or "missing" in str(warning.message).lower() for warning in caught), caught
    biases = [sum(name.endswith("bias") for name in names) for names in (trained, keys)]
    moved, lost = float((before - plain).abs().max()), float((before - after).abs().max())
    found[bias] = (*biases, len(keys), lost == 0)
    print(f"bias={bias!r}: {biases[0]} biases trained, {len(keys)} keys saved, {biases[1]} of them biases")
    for what, logits in {"first": plain, "trained": before, "loaded": after}.items():
        print(f"  logits {what}:", " ".join(f"{value:.4f}" for value in logits[0, -1, :4]))
    print(f"  training moved them by up to {moved:.2f}, saving and loading by up to {lost:.2f}")
    assert moved > 0.1 and (lost == 0 or lost > 0.05)
assert found == {"lora_only": (4, 4, 12, True) if right else (4, 0, 8, False), "all": (6, 6, 14, True)}, found
PYTHON
done
echo "as described"
