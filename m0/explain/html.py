"""Explanations as a page: one file, no network.

Words are shaded, pictures lie under a heat map that can be faded in and out and tells its values under the pointer; a click on a
word (or a picture) of the query shows what of the document answers it.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from m0.checkpoints.files import write_beside
from m0.errors import InputError
from m0.explain.explanation import FORMATTERS, Explanation, Word
from m0.explain.show import NEGATIVE_COLOUR, POSITIVE_COLOUR, colours, max_abs_relevance, normalize_relevance, text_and_pictures
from m0.interp.words import find_words
from m0.paths import path_of

CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""What no page may hold."""
STYLE = """
.m0 { font: 15px/1.7 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 62em; margin: 1.5em auto; padding: 0 1em }
.m0 h2 { font-size: 1.05em; margin: 1.4em 0 .3em } .m0 .side { color: #555; font-size: .8em; text-transform: uppercase }
.m0 .text { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2em 0 .8em } .m0 .w { border-radius: 3px; padding: 1px 0 }
.m0 .query .w, .m0 .query canvas { cursor: pointer } .m0 .on { outline: 2px solid #1a1a1a } .m0 .pic { position: relative; display: inline-block; margin: .3em 0 }
.m0 .pic img { display: block; width: 100%; image-rendering: auto } .m0 .pic canvas, .m0 .pic .still { position: absolute; inset: 0; width: 100%; height: 100%;
image-rendering: pixelated; cursor: crosshair } .m0 table { border-collapse: collapse; font-size: .85em } .m0 td { padding: 0 1em 0 0; color: #333 }
.m0 .value { font-size: .85em; color: #333; min-height: 1.5em } .m0 input[type=range] { width: 12em; vertical-align: middle }
.m0 .key span { padding: 0 .5em; border-radius: 3px; font-size: .8em }
"""

SCRIPT = """
(function (root, data) {
  const FOR = data.colours[0], AGAINST = data.colours[1];
  const words = {}; root.querySelectorAll('.w').forEach(w => words[w.dataset.n] = w);
  const say = root.querySelector('.value:not(.row)'), row_name = root.querySelector('.row');
  root.querySelectorAll('.still').forEach(image => image.remove());
  const tint = (v, scale) => { const s = Math.max(-1, Math.min(1, v / scale)); const c = s > 0 ? FOR : AGAINST;
    return 'rgba(' + c.join(',') + ',' + (Math.abs(s) * 0.85).toFixed(3) + ')'; };
  function paint(canvas, cells, scale) { const g = canvas.getContext('2d'); canvas.width = cells[0].length; canvas.height = cells.length;
    cells.forEach((row, r) => row.forEach((v, c) => { g.fillStyle = tint(v, scale); g.fillRect(c, r, 1, 1); })); }
  let chosen = null, shownCells = data.pictures;
  function show(row) {
    const m = data.matrix; let scale = data.scale, values = data.words; shownCells = data.pictures;
    if (row !== null) { values = Object.assign({}, data.words); m.document.forEach((n, i) => values[n] = m.values[row][i]);
      shownCells = data.pictures.map((cells, p) => m.pictures[p] ? m.pictures[p][row] : cells);
      scale = Math.max(1e-12, ...m.values[row].map(Math.abs), ...m.pictures.flatMap(p => p ? p[row].flat().map(Math.abs) : [])); }
    for (const n in words) if (row === null || m.document.includes(+n)) {
      words[n].style.background = tint(values[n], scale); words[n].title = values[n].toPrecision(3); }
    root.querySelectorAll('canvas').forEach((canvas, p) => paint(canvas, shownCells[p], scale));
    row_name.textContent = row === null ? '' : 'what answers "' + m.names[row] + '" (click again to go back)';
  }
  const select = w => { if (!data.matrix) return;
    const row = data.matrix.query.indexOf(w.dataset.n); if (row < 0) return;
    root.querySelectorAll('.on').forEach(o => o.classList.remove('on'));
    if (chosen === row) { chosen = null; } else { chosen = row; w.classList.add('on'); } show(chosen); };
  root.querySelectorAll('.query .w, .query .pic').forEach(w => { w.tabIndex = 0; w.addEventListener('click', () => select(w));
    w.addEventListener('keydown', e => { if (e.key === 'Enter' || e.key === ' ') { e.preventDefault(); select(w); } }); });
  root.querySelectorAll('canvas').forEach((canvas, p) => canvas.addEventListener('mousemove', e => {
    const box = canvas.getBoundingClientRect(), cells = shownCells[p];
    const r = Math.min(cells.length - 1, Math.floor((e.clientY - box.top) / box.height * cells.length));
    const c = Math.min(cells[0].length - 1, Math.floor((e.clientX - box.left) / box.width * cells[0].length));
    say.textContent = 'cell (' + r + ', ' + c + '): ' + cells[r][c].toPrecision(3); }));
  root.querySelectorAll('input[type=range]').forEach(bar => bar.addEventListener('input', () => {
    root.querySelectorAll('.pic canvas').forEach(c => c.style.opacity = bar.value / 100);
    root.querySelectorAll('.pic img').forEach(i => i.style.filter = 'grayscale(' + bar.value + '%) contrast(' + (100 - bar.value * 0.55) + '%)'); }));
  show(null);
})
"""


def page(
    explanations: Sequence[Explanation], path: Any = None, title: str = "Why these scores", names: Sequence[str] | None = None
) -> str:
    """A page with one explanation after the other, such as a whole ranking's. `names`: what the documents are called. Raises
    InputError where the path refuses."""
    if names is not None and len(names) != len(explanations):
        raise InputError(f"there are {len(names)} names for {len(explanations)} explanations.")
    titles = [f"{place}. {name}" for place, name in enumerate(names, 1)] if names else [""] * len(explanations)
    body = "\n".join(fragment(explanation, name) for explanation, name in zip(explanations, titles, strict=True))
    text = CONTROL_CHARACTERS.sub(
        "\ufffd",
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width"></head>'
        f"<body>{body}</body></html>",
    )
    if path is not None:
        path = path_of(path)
        try:
            # Names of files may hold bytes that are no text.
            write_beside(path, lambda place: Path(place).write_text(text, encoding="utf-8", errors="backslashreplace"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}.") from None
    return text


def fragment(explanation: Explanation, name: str = "") -> str:
    """One explanation as a part of a page (a notebook's cell), with its own style and script."""
    scale = max_abs_relevance(explanation)
    numbers = {id(word): place for place, word in enumerate(explanation.words)}
    sides = []
    for side in ("query", "document"):
        parts = []
        for part in text_and_pictures(explanation, side):
            if isinstance(part, int):
                parts.append(_picture_html(explanation, part, scale))
            else:
                inner = "".join(
                    escape(piece) if isinstance(piece, str) else _word_html(piece, numbers[id(piece)], scale) for piece in part
                )
                parts.append(f'<div class="text" dir="auto">{inner}</div>')
        sides.append(f'<div class="{side}"><span class="side">{side}</span>{"".join(parts)}</div>')
    rows = {**explanation.shares, **{f"ledger: {name}": value for name, value in explanation.ledger.items()}}
    table = "".join(f"<tr><td>{escape(name)}</td><td>{value:.4g}</td></tr>" for name, value in rows.items())
    notes = "".join(f"<p>{escape(note)}</p>" for note in explanation.notes)
    place = f"{escape(name)}: " if name else ""
    slider = '<label>heat map <input type="range" min="0" max="100" value="85"></label>' if explanation.pictures else ""
    key = "".join(
        f'<span style="background:rgb{colour};color:#000">{text}</span> '
        for colour, text in ((POSITIVE_COLOUR, "for"), (NEGATIVE_COLOUR, "against"))[: 2 if explanation.signed else 1]
    )
    return (
        f'<div class="m0"><style>{STYLE}</style><h2>{place}score {explanation.score:.4f}, logit {explanation.logit:.3f}, '
        f'by {escape(explanation.method)}</h2><div class="key">{key}{slider}</div>{"".join(sides)}'
        f'<div class="value row"></div><div class="value"></div><details><summary>shares and ledger</summary><table>{table}</table></details>{notes}'
        f"<script>{SCRIPT}(document.currentScript.parentElement, {_script_data(explanation, scale)})</script></div>"
    )


def _word_html(word: Word, number: int, scale: float) -> str:
    share = normalize_relevance(word.relevance, scale)
    red, green, blue = POSITIVE_COLOUR if share > 0 else NEGATIVE_COLOUR
    style = f"background:rgba({red},{green},{blue},{abs(share) * 0.85:.3f})"
    return f'<span class="w" data-n="{number}" title="{word.relevance:+.3g}" style="{style}">{escape(word.text)}</span>'


def _picture_html(explanation: Explanation, number: int, scale: float) -> str:
    shown = explanation.pictures[number]
    width, height = shown.picture.original_size
    wide = max(4.0, min(max(160, min(width, 640)), 800 * width / height))  # at most 800 pixels high
    # As it was resized: that is what the model saw, and no page needs a scan of 50 megapixels.
    image = Image.fromarray(shown.picture.pixels)
    still = Image.fromarray(colours(shown.cells.numpy().astype(np.float64), scale))
    return (
        f'<div><div class="pic" data-n="picture {number}" style="width:min(100%, {wide:.0f}px); aspect-ratio:{width}/{height}">'
        f'<img alt="picture {number}" style="height:100%;filter:grayscale(85%) contrast(53%)" src="{_png_data_url(image)}">'
        f'<img class="still" alt="relevance" style="height:100%" src="{_png_data_url(still)}"><canvas style="opacity:.85"></canvas></div></div>'
    )


def _png_data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _script_data(explanation: Explanation, scale: float) -> str:
    data: dict[str, Any] = {
        "colours": [POSITIVE_COLOUR, NEGATIVE_COLOUR],
        "scale": scale,
        "words": {number: word.relevance for number, word in enumerate(explanation.words)},
        "pictures": [picture.cells.tolist() for picture in explanation.pictures],
        "matrix": None,
    }
    if explanation.interaction is not None:
        numbers = {span: place for place, span in enumerate(find_words(explanation.encoding))}
        query_spans, shown, values = explanation.interaction.by_word(explanation.encoding)
        pictures = [
            explanation.interaction.on_picture(explanation.encoding, place)[1].tolist() if picture.side == "document" else None
            for place, picture in enumerate(explanation.pictures)
        ]
        data["matrix"] = {
            "query": [str(numbers.get(span, span.text)) for span in query_spans],
            "names": [span.text for span in query_spans],
            "document": [numbers[span] for span in shown],
            "values": values.tolist(),
            "pictures": pictures,
        }
    # Nothing in the data may end the script.
    return json.dumps(_round_numbers(data)).replace("<", "\\u003c")


def _round_numbers(value: Any) -> Any:
    """Numbers to six digits: nobody hovers for more."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list):
        return [_round_numbers(item) for item in value]
    return {key: _round_numbers(item) for key, item in value.items()} if isinstance(value, dict) else value


FORMATTERS.update(page=page, fragment=fragment)
