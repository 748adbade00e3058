#!/bin/sh
# transformers 4.57.6 (Pillow 13.0.0, no torchvision) reads the settings of a Qwen2-VL image processor that transformers 5.24.0 saved: its
# limits are lost. 5 writes them as size = {"shortest_edge": ..., "longest_edge": ...} only; 4.57.6's processor that works without
# torchvision checks that size has these two keys and then puts its own defaults in its place, so that pages are used at up to
# 1,003,520 pixels whatever the file says. Nothing says so. size= as an option of from_pretrained is lost in the same way. max_pixels=,
# size= in the call, and min_pixels and max_pixels in the file beside size are used, by both versions.
#
# Seen, for a page of 1240 x 1754 pixels and a limit of 12,544 pixels in the file: 12 visual tokens with 5.24.0, 1260 with 4.57.6 (whose
#       processor says max_pixels 1003520), and the same with size= asked for on loading; 12 with max_pixels=12544, with size= in the
#       call, and with the two keys added to the file.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
for version in 5.24.0 4.57.6; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip install --quiet transformers=="$version" pillow==13.0.0 numpy==2.4.6
    "$folder/$version/bin/python" - <<'PYTHON'
import json
import pathlib

import transformers
from PIL import Image
from transformers import AutoImageProcessor

limits = {"shortest_edge": 3136, "longest_edge": 12544}
new = transformers.__version__ == "5.24.0"
if new:  # it runs first, and writes the files that both read
    from transformers import Qwen2VLImageProcessorPil

    Qwen2VLImageProcessorPil(size=dict(limits)).save_pretrained("saved")
    settings = json.loads(pathlib.Path("saved/preprocessor_config.json").read_text())
    print("saved:", settings["image_processor_type"], settings["size"], "min_pixels" in settings, "max_pixels" in settings)
    assert settings["size"] == limits and not {"min_pixels", "max_pixels"} & set(settings)
    pathlib.Path("added").mkdir()
    pathlib.Path("added/preprocessor_config.json").write_text(json.dumps(settings | {"min_pixels": 3136, "max_pixels": 12544}))
page = Image.new("RGB", (1240, 1754), "white")


def tokens(folder, call={}, **options):
    processor = AutoImageProcessor.from_pretrained(folder, **options)
    return int(processor(images=[page], return_tensors="np", **call)["image_grid_thw"].prod()) // 4


found = {
    "as saved": tokens("saved"),
    "as saved, size= on loading": tokens("saved", size=dict(limits)),
    "as saved, max_pixels= on loading": tokens("saved", max_pixels=12544),
    "as saved, size= in the call": tokens("saved", call={"size": dict(limits)}),
    "min_pixels and max_pixels added": tokens("added"),
}
for name, count in found.items():
    print(f"transformers {transformers.__version__}, {name}: {count} visual tokens")
assert list(found.values()) == ([12] * 5 if new else [1260, 1260, 12, 12, 12]), found
if not new:
    processor = AutoImageProcessor.from_pretrained("saved")
    print(type(processor).__name__, processor.size, processor.max_pixels)
    assert processor.max_pixels == 1003520
PYTHON
done
echo "as described"
