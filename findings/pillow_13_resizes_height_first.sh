#!/bin/sh
# Pillow 13.0.0 against 12.2.0: Image.resize does its two passes in the other order for some sizes, and so gives other pixels from the same
# picture. 12.2.0 does the width first; 13.0.0 does the height first where the height shrinks and the width does not, or the
# height shrinks much more. Both round to 8 bits, and cut off what overshoots, between the passes, so that the order is seen. One such size
# is what Qwen2-VL's image processor makes of a US-letter page at 72 dpi: 612 x 792 becomes 616 x 784 (multiples of 28). Scores or
# embeddings of pages that were recorded with Pillow 12 are so not reproduced with 13. Two calls, width first, give 12.2's on both.
#
# Seen, for a drawn page with thin lines and strokes like those of text, BICUBIC: at 616 x 784 8.9 % of the values differ, by up to 28 grey
#       levels; at 600 x 400 (the height shrinks much more) some do too; at 308 x 392 and 756 x 1008 (both sides shrink about alike, or
#       both grow) none does. Two calls, width first, give 12.2's values with either version, and height first 13's at 616 x 784.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat >draw.py <<'PYTHON'
from PIL import Image, ImageDraw

page = Image.new("RGB", (612, 792), "white")
draw = ImageDraw.Draw(page)
state = 1
for y in range(67, 720, 11):
    x = 54
    while x < 550:
        state = (state * 1103515245 + 12345) % 2**31
        draw.rectangle((x, y - 3 - state // 65536 % 5, x + state // 4096 % 2, y), fill="black")
        x += 3 + state // 512 % 4
for y in range(60, 740, 34):
    draw.line((40, y, 570, y), fill=(180, 0, 0))
for x in range(40, 571, 53):
    draw.line((x, 60, x, 740), fill=(0, 0, 160))
page.save("page.png")
PYTHON
cat >resize.py <<'PYTHON'
import numpy as np
import PIL
from PIL import Image

page = Image.open("page.png")
found = {}
for width, height in ((616, 784), (600, 400), (308, 392), (756, 1008)):
    for way, steps in {"one call": [(width, height)], "width first": [(width, 792), (width, height)],
                       "height first": [(612, height), (width, height)]}.items():
        picture = page
        for size in steps:
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        found[f"{width} x {height}, {way}"] = np.asarray(picture)
np.savez(PIL.__version__ + ".npz", **found)
PYTHON
for version in 12.2.0 13.0.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip install --quiet pillow=="$version" numpy==2.4.6
    test -e page.png || "$folder/$version/bin/python" draw.py
    "$folder/$version/bin/python" resize.py
done
"$folder/13.0.0/bin/python" - <<'PYTHON'
import numpy as np

old, new = np.load("12.2.0.npz"), np.load("13.0.0.npz")
found = {}
for name in old:
    difference = abs(old[name].astype(int) - new[name])
    found[name] = (round(float((difference > 0).mean()), 3), int(difference.max()))
    print(f"{name}: {found[name][0]:.1%} of the values differ between 12.2.0 and 13.0.0, by up to {found[name][1]}")
assert found.pop("616 x 784, one call") == (0.089, 28), found
assert found.pop("600 x 400, one call")[1] > 1, found
assert set(found.values()) == {(0, 0)}, found
order = {}
for size in ("616 x 784", "600 x 400", "308 x 392", "756 x 1008"):
    for version, values in (("12.2.0", old), ("13.0.0", new)):
        order[size, version] = [way for way in ("width first", "height first")
                                if np.array_equal(values[f"{size}, one call"], values[f"{size}, {way}"])]
        print(f"{size} in one call, Pillow {version}: {' and '.join(order[size, version])}")
height = [key for key, ways in order.items() if ways == ["height first"]]
assert height == [("616 x 784", "13.0.0"), ("600 x 400", "13.0.0")], order
assert sum(ways == ["width first"] for ways in order.values()) == 6, order
PYTHON
echo "as described"
