"""Files of several pages or frames: which one is read, and that the others were not is said everywhere."""

import io
import json
import struct

import numpy as np
import pytest
from PIL import Image

from m0.cli.main import main
from m0.engine.cascade import Cascade
from m0.errors import InputError
from m0.inputs.frames import Frame, frame_of
from m0.inputs.images import prepare_picture
from m0.inputs.prompt import CutPages

PAGES = [Image.new("RGB", (60, 56), colour) for colour in ("white", "red", "blue")]


def several(kind, pages=PAGES):
    file = io.BytesIO()
    first, *others = [page.copy() for page in pages]  # Pillow leaves on a page what it was last saved with
    first.save(file, kind, save_all=True, append_images=others)
    return file.getvalue()


def opened(data, at=0):
    image = Image.open(io.BytesIO(data))
    image.seek(at)
    return image


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WebP", "PNG"])
def test_the_first_is_read_and_the_others_are_counted(kind):
    data = several(kind)
    assert prepare_picture(data).frame == Frame(1, 3)
    assert prepare_picture(several(kind, PAGES[:1])).frame == Frame(1, 1)
    assert prepare_picture(opened(data)).frame == Frame(1, 3)
    assert prepare_picture(opened(data, 1)).frame == Frame(2, 3)
    assert np.array_equal(prepare_picture(data).pixels, prepare_picture(opened(data)).pixels)
    assert not np.array_equal(prepare_picture(data).pixels, prepare_picture(opened(data, 1)).pixels)
    assert prepare_picture(opened(data, 1).copy()).frame == Frame()  # it stands for itself


@pytest.mark.parametrize("kind", ["TIFF", "GIF"])
def test_counting_leaves_what_its_owner_painted(kind):
    image = opened(several(kind))
    image.load()
    image.paste(image.getpixel((0, 0)), (0, 0, *image.size))
    image.putpixel((5, 5), 0 if image.mode == "P" else (1, 2, 3))
    before = image.tobytes()
    assert prepare_picture(image).frame == Frame(1, 3)
    assert image.tobytes() == before
    assert image.tell() == 0


def test_a_closed_file_cannot_be_counted_but_what_is_loaded_is_used(tmp_path):
    (tmp_path / "scan.tif").write_bytes(several("TIFF"))
    with Image.open(tmp_path / "scan.tif") as image:
        image.load()
    assert prepare_picture(image).frame == Frame()


def test_sizes_of_an_icon_and_further_views_are_no_pages():
    icon = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(icon, "ICO", sizes=[(16, 16), (32, 32), (64, 64)])
    assert prepare_picture(icon.getvalue()).frame == Frame()
    image = opened(several("MPO"))
    if image.format == "MPO":  # Pillow 10 writes it so that it reads a broken JPEG
        assert image.n_frames == 3
        assert prepare_picture(image).frame == Frame()
    layers = Held(b"", "PSD", 5)
    assert frame_of(layers) == Frame()
    layers.format = "DCX"
    assert frame_of(layers) == Frame(1, 5)


def chain(order, kinds, big=False):
    """A TIFF's directories alone, one for each value of NewSubfileType; None: without."""
    number, offset, first = ("Q", "Q", 16) if big else ("H", "I", 8)
    data = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    data += struct.pack(order + "HHQ", 8, 0, first) if big else struct.pack(order + "I", first)
    for place, kind in enumerate(kinds, 1):
        entry = b"" if kind is None else struct.pack(order + ("HHQI4x" if big else "HHII"), 254, 4, 1, kind)
        data += struct.pack(order + number, kind is not None) + entry
        data += struct.pack(order + offset, 0 if place == len(kinds) else len(data) + struct.calcsize(order + offset))
    return data


class Held:
    """What `frame_of` looks at."""

    def __init__(self, data, kind="TIFF", frames=1):
        self.format, self.fp, self.n_frames = kind, io.BytesIO(data), frames

    def tell(self):
        return 0


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("kinds", "pages"), [([None], 1), ([None, 0, 2], 3), ([0, 1, 0, 5, 4], 2), ([1, 0], 2), ([1], 1), ([2] * 300, 300)]
)
def test_thumbnails_and_masks_of_a_tiff_are_no_pages(order, big, kinds, pages):
    assert frame_of(Held(chain(order, kinds, big))) == Frame(1, pages)


def test_a_damaged_chain_of_directories_ends_the_count():
    data = chain("<", [0, 0, 0])
    assert frame_of(Held(data[:-10])) == Frame(1, 2)  # cut short
    assert frame_of(Held(data[:-4] + struct.pack("<I", 8))) == Frame(1, 3)  # begins anew
    assert frame_of(Held(data[:-4] + struct.pack("<I", 10**9))) == Frame(1, 3)
    assert frame_of(Held(data[:8] + b"\xff\xff" + data[10:])) == Frame(1, 1)  # longer than the file


def test_what_was_left_out_stands_in_the_results(nano):
    scan = several("TIFF")
    (result,) = nano.rank("red", [["text", {"image": scan}, {"image": PAGES[0]}, {"image": several("GIF")}]])
    assert result.cut == (CutPages("document", 1, 1, 3), CutPages("document", 3, 1, 3))
    assert str(result.cut[0]) == "document part 1: only page or frame 1 of 3 was read"
    (result,) = nano.rank({"image": opened(scan, 2)}, ["red"])
    assert result.cut == (CutPages("query", 0, 1, 3, page=3),)
    animation = {"image": several("GIF")}
    (result,) = nano.rank("red " * 99, [animation], max_query_length=5)
    assert [type(cut).__name__ for cut in result.cut] == ["CutPages", "Cut"]
    explained = nano.explain("red", animation)
    assert explained.notes[0] == "what was cut is not explained: document part 0: only page or frame 1 of 3 was read."
    assert explained.to_json()["cut"] == [{"side": "document", "part": 0, "kept": 1, "pages": 3, "page": 1}]


def test_pages_change_no_key(nano):
    one, three = nano.encode("red", prepare_picture(PAGES[0])), nano.encode("red", prepare_picture(several("TIFF")))
    assert one.key == three.key
    assert one.document_key == three.document_key
    assert not one.cut
    assert three.cut


def test_a_cascade_keeps_the_frame():
    large = prepare_picture(several("TIFF", [page.resize((560, 560)) for page in PAGES]))
    (small,) = Cascade(max_pixels=28 * 28 * 16).smaller([large])
    assert small.num_tokens < large.num_tokens
    assert small.frame == large.frame == Frame(1, 3)


@pytest.mark.parametrize("give", [lambda scan: scan, lambda scan: {"image": scan}, io.BytesIO], ids=["bytes", "part", "file"])
def test_a_scan_by_itself_is_scored_by_its_best_page(nano, give):
    """And with a text, in a list, as a query, or as Pillow has it open, by one page."""
    document = give(several("TIFF"))
    (result,) = nano.rank("red", [document])
    alone = nano.logits([("red", page) for page in PAGES])
    assert result.logit == pytest.approx(max(alone), abs=1e-5)
    assert (result.page.number, result.page.pages, result.passage.number, result.passage.count) == (2, 3, 2, 3)
    assert not result.cut
    assert nano.logits([("red", document)]) == pytest.approx([max(alone)], abs=1e-5)
    assert nano.compute_score([["red", document]], normalize_scores=False) == pytest.approx(max(alone), abs=1e-5)
    assert nano.encode("red", document).cut == (CutPages("document", 0, 1, 3),)
    assert nano.encode(document, "red").cut == (CutPages("query", 0, 1, 3),)
    assert nano.encode("red", [document, document]).cut == tuple(CutPages("document", part, 1, 3) for part in range(2))


def test_a_scan_that_is_named_a_file_of_pages_is_read_whole(nano):
    scan = {"pdf": several("TIFF")}
    assert len(nano.read([scan])) == 3
    assert len(nano.read({**scan, "pages": "2"})) == 1
    with pytest.raises(
        InputError, match=r'has 3 pages, which are a prompt each; name one as in "pages": "1", or give them in a list'
    ):
        nano.read(scan)


def test_the_command_line_says_it(tmp_path, capsys):
    path = tmp_path / "animation.gif"
    path.write_bytes(several("GIF"))
    assert main(["rank", "red", str(path)]) == 0
    assert f"m0: {path}: document part 0: only page or frame 1 of 3 was read.\n" in capsys.readouterr().err
    for command in ("rank", "explain"):
        assert main([command, "red", str(path), "--json"]) == 0
        (result,) = json.loads(capsys.readouterr().out)["results"]
        assert result["cut"] == [{"side": "document", "part": 0, "kept": 1, "pages": 3, "page": 1}]
