#!/bin/sh
# Pillow 13.0.0 (10.4.0 is right): an uncompressed TIFF whose orientation tag is one of those that turn by a quarter (274 = 5 to 8) is
# read wrong when it is opened by name, and right when the same file is opened as a stream. By name the file is mapped into memory,
# with the width and height that the picture has after the turn, so that rows of the wrong length are cut from the samples; the result is
# then turned, and so has the width and height of the picture as stored. It looks as if it had not been turned, but its pixels are
# scrambled too. There is no warning. It holds for the modes that are mapped (grey of 8 and 16 bits, RGBA, CMYK), not for RGB, not for
# compressed files, and a picture that is as wide as high is right. ImageOps.exif_transpose does not help: loading removes the tag, so
# it leaves both as they are, and a program that calls it gets other pixels from a name than from a stream.
#
# Seen with 13.0.0, grey picture of 3 rows of 8 with 274 = 6: by stream 8 rows of 3, the right turn; by name 3 rows of 8 that are neither
#       the stored picture nor the turned one, although size said 3 wide and 8 high before loading; after exif_transpose the same two.
#       With 10.4.0 both are right, with and without exif_transpose.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
for version in 13.0.0 10.4.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip install --quiet pillow=="$version" numpy==2.4.6
    "$folder/$version/bin/python" - <<'PYTHON'
import numpy as np
import PIL
from PIL import Image, ImageOps

print("Pillow", PIL.__version__)
right = PIL.__version__ == "10.4.0"
stored = np.arange(24, dtype="uint8").reshape(3, 8)
turned = np.rot90(stored, -1)


def both(picture, orientation=6, **options):
    """The pixels by name and by stream, each without and with exif_transpose."""
    picture.save("x.tif", tiffinfo={274: orientation}, **options)
    found = []
    for turn in (lambda opened: opened, ImageOps.exif_transpose):
        with open("x.tif", "rb") as stream:
            found.append((np.asarray(turn(Image.open("x.tif"))), np.asarray(turn(Image.open(stream)))))
    return found


plain, transposed = both(Image.fromarray(stored))
opened = Image.open("x.tif")
print("tag:", opened.getexif()[274], "| size before loading:", opened.size, end=" | ")
opened.load()
print("tag:", opened.getexif().get(274), "| size after:", opened.size)
for what, (name, stream) in {"as opened": plain, "exif_transpose": transposed}.items():
    print(f"{what}: by name {name.tolist()}\n{what}: by stream {stream.tolist()}")
    assert np.array_equal(stream, turned)
    assert np.array_equal(name, turned) == right and not np.array_equal(name, stored)
    if not right:
        assert np.array_equal(name, np.rot90(stored.reshape(8, 3), -1))
grey = Image.fromarray(stored)
cases = {f"L, orientation {value}": (grey, value, {}) for value in range(1, 9)}
cases |= {mode: (grey.convert(mode), 6, {}) for mode in ("RGBA", "CMYK", "RGB", "LA", "1")}
cases |= {"I;16": (Image.fromarray(stored.astype("uint16")), 6, {}), "L, 8 x 8": (grey.resize((8, 8)), 6, {}),
          "L, LZW": (grey, 6, {"compression": "tiff_lzw"})}
same = {case: [np.array_equal(*pair) for pair in both(picture, value, **options)] for case, (picture, value, options) in cases.items()}
differ = [case for case, pairs in same.items() if not all(pairs)]
assert all(len(set(pairs)) == 1 for pairs in same.values()), same  # exif_transpose changes nothing about it
print("by name other than by stream:", differ)
print("the same:", [case for case in same if case not in differ])
assert differ == ([] if right else [f"L, orientation {value}" for value in (5, 6, 7, 8)] + ["RGBA", "CMYK", "I;16"]), differ
PYTHON
done
echo "as described"
