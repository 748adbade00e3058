#!/bin/sh
# Pillow 13.0.0, and 10.3.0 alike (pictures made with imagecodecs 2026.3.6): a JPEG 2000 colour picture of more than 8 bits a sample whose
# samples are all at the largest value is read as black. The scaling to 8 bits adds a half before it shifts, without a limit, so that
# what should be rounded to 256 becomes 0. There is no warning. A page on pure white paper comes out with black paper and the text is
# lost; an opaque alpha of more than 8 bits comes out as transparent in the same way. Pictures of 8 bits are right.
#
# Seen: white of 10, 12 and 16 bits is read as 0 by RGB, and with alpha as (0, 0, 0, 0); white of 8 bits is 255. Of all values of 16 bits
#       those from 65408, the top 1/512, are read as 0 and all others are right to within the rounding: 65407 is 255. imagecodecs reads
#       from the same bytes what was put in.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
for version in 13.0.0 10.3.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip install --quiet pillow=="$version" imagecodecs==2026.3.6 numpy==2.4.6
    "$folder/$version/bin/python" - <<'PYTHON'
import io

import imagecodecs
import numpy as np
import PIL
from PIL import Image


def read(samples, bits):
    data = imagecodecs.jpeg2k_encode(samples, level=0, reversible=True, codecformat="j2k", bitspersample=bits)
    assert (imagecodecs.jpeg2k_decode(data) == samples).all()
    picture = Image.open(io.BytesIO(data))
    assert picture.mode == {3: "RGB", 4: "RGBA"}[samples.shape[2]]
    return np.asarray(picture).astype(int)


print("Pillow", PIL.__version__)
for bits in (8, 10, 12, 16):
    kind, top = ("uint8" if bits == 8 else "uint16"), 2**bits - 1
    found = [np.unique(read(np.full((8, 8, channels), top, kind), bits)).tolist() for channels in (3, 4)]
    gradient = np.arange(2**bits, dtype=kind)
    seen = read(np.repeat(gradient.reshape(-1, 16, 1), 3, axis=2), bits)[..., 0].ravel()
    right = np.minimum(np.round(gradient / 2 ** (bits - 8)), 255)
    wrong = np.flatnonzero(abs(seen - right) > 1)
    print(f"{bits} bits: white is read as {found[0]}, white and opaque as {found[1]}; of {len(seen)} values {len(wrong)} are wrong"
          + (f", from {wrong[0]} ({seen[wrong[0]]}; {wrong[0] - 1} is {seen[wrong[0] - 1]})" if len(wrong) else ""))
    assert found == ([[255], [255]] if bits == 8 else [[0], [0]]), found
    assert wrong.tolist() == ([] if bits == 8 else list(range(top + 1 - 2**bits // 512, top + 1))), wrong
    assert bits == 8 or (not seen[wrong].any() and seen[wrong[0] - 1] == 255)
PYTHON
done
echo "as described"
