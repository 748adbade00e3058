#!/bin/sh
# transformers 5.24.0 (Pillow 13.0.0, no torchvision): a Qwen2-VL image processor is loaded with size={"shortest_edge": ...,
# "longest_edge": ...} to bound the number of visual tokens. Where the checkpoint's preprocessor_config.json has min_pixels and max_pixels,
# as those of Qwen2-VL and its rerankers and retrievers do, the size that was asked for is not used, and nothing says so: memory
# and scores are those of full pages. The caller's own dictionary is overwritten with the file's limits besides, so that the next
# checkpoint that is loaded with it gets the first one's limits. max_pixels= is used.
#
# Seen, for a page of 1240 x 1754 pixels and a limit of 256 tokens asked for: 2772 visual tokens with size=, 247 with max_pixels=; the
#       caller's dictionary afterwards says 12845056. From a file without the two keys: 247 with a fresh dictionary, 2772 with the one
#       that was used before.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0
"$folder/venv/bin/python" -m pip install --quiet transformers==5.24.0 pillow==13.0.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import json
import pathlib

from PIL import Image
from transformers import AutoImageProcessor

limits = {"min_pixels": 3136, "max_pixels": 12845056}  # as Qwen2-VL's own file has them
common = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
for name, extra in {"with": limits, "without": {}}.items():
    pathlib.Path(name).mkdir()
    pathlib.Path(name, "preprocessor_config.json").write_text(json.dumps(common | extra))
page = Image.new("RGB", (1240, 1754), "white")
budget = 256 * 28 * 28


def tokens(folder, **options):
    processor = AutoImageProcessor.from_pretrained(folder, **options)
    return int(processor(images=[page], return_tensors="pt")["image_grid_thw"].prod()) // 4


size = {"shortest_edge": 3136, "longest_edge": budget}
found = {
    "file with limits": tokens("with"),
    "file with limits, size=": tokens("with", size=size),
    "file with limits, max_pixels=": tokens("with", max_pixels=budget),
    "file without limits, size= in the dictionary used before": tokens("without", size=size),
    "file without limits, size= in a fresh one": tokens("without", size={"shortest_edge": 3136, "longest_edge": budget}),
}
for name, count in found.items():
    print(f"{name}: {count} visual tokens")
print("the dictionary that was used:", size)
assert list(found.values()) == [2772, 2772, 247, 2772, 247], found
assert size["longest_edge"] == 12845056, size
PYTHON
echo "as described"
