"""How faithful each explanation of m0-nano is: deletion and insertion, the pointing game, randomised weights. On held-out data.

    python scripts/evaluate_explanations.py [--model weights/m0-nano] [--data build/nano-data] [--pairs 355 412] [--write docs/explanation/explaining.md]

Needs what `nano/build_data.py` makes. Texts: a heading and its section. Pictures: an emoji's name and a picture with six emoji, one
of them named. All held out, but for the pointing game, whose names may be any: it asks what the explanation shows, not what the model
knows. It is played with pictures of four, six and nine emoji.

| measure | what is done | better |
| --- | --- | --- |
| deletion | words or cells are left out, the most relevant first; mean fall of the logit on the way to nothing | higher |
| insertion | they are put back, the most relevant first; mean rise of the logit on the way to everything | higher |
| pointing | the cell with the highest relevance lies on the named emoji | higher |

Deletion and insertion are given as shares of the logit's whole range from nothing to everything of the document, so that pairs
count alike; random order is near 0.5 where parts add up. Intervals are 95 % bootstrap intervals over pairs.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from nano.evaluate import shown, write_between
from nano.material import Box, read, sheet
from PIL import Image
from torch import Tensor

from m0 import Reranker
from m0.evaluate.metrics import estimate
from m0.explain import METHODS, explain
from m0.explain.perturb import MaskedModel, find_players
from m0.inputs.prompt import Encoding
from m0.interp.grid import pearson_correlation, ranks

SEED = 5
STEPS = 8
GRIDS = ((2, 2), (2, 3), (3, 3))
"""Rows and columns of emoji in the pictures of the pointing game."""
CHARACTERS = 300
"""Of a section's beginning."""
SPACE = 84
"""Pixels of a picture that one emoji has for itself."""
PARTS = ("pointing", "randomised", "texts", "pictures")
MARKS = ("<!-- figures: written by scripts/evaluate_explanations.py -->", "<!-- end of figures -->")
OPTIONS: dict[str, dict[str, Any]] = {
    "shapley": {"permutations": 8},
    "integrated_gradients": {"nodes": 16},
    "smooth_grad": {"samples": 8},
}


def text_pairs(data: Path, count: int, reranker: Reranker) -> list[Encoding]:
    """Headings and sections, as many languages as there are, documents of 20 words at least."""
    rng = random.Random(SEED)
    rows = [row for row in read(data / "sections.jsonl") if row["held_out"] and len(row["text"]) > 120]
    rng.shuffle(rows)
    return [reranker.encode(row["heading"], row["text"][:CHARACTERS]) for row in rows[:count]]


def picture_pairs(
    data: Path, count: int, reranker: Reranker, any_name: bool = False, grid: tuple[int, int] = (2, 3)
) -> tuple[list[Encoding], list[Box]]:
    """Names that were held out (or any), each with a picture of rows and columns of emoji, and where the one named lies."""
    rng = random.Random(SEED)
    emoji = read(data / "emoji.jsonl")
    named = [(row, language) for row in emoji for language in (row["names"] if any_name else row["held_out"])]
    encodings, boxes = [], []
    for row, language in rng.sample(named, count):
        others = rng.sample([other for other in emoji if other is not row], grid[0] * grid[1] - 1)
        all_of_them = [row, *others]
        rng.shuffle(all_of_them)
        paper, found = sheet([Image.open(data / drawn["image"]).convert("RGBA") for drawn in all_of_them], rng, grid, SPACE)
        encodings.append(reranker.encode(row["names"][language], {"image": paper}))
        boxes.append(found[all_of_them.index(row)])
    return encodings, boxes


def curves(game: MaskedModel, order: list[int]) -> tuple[float, float]:
    """Mean fall of the logit while players go in this order, and mean rise while they come: shares of the whole range."""
    count = len(order)
    cuts = sorted({round(count * step / STEPS) for step in range(1, STEPS)})
    everyone = set(range(count))
    gone = game.logits([order[:cut] for cut in cuts])
    come = game.logits([everyone - set(order[:cut]) for cut in cuts])
    full, empty = game.logits([[], everyone]).tolist()
    span = full - empty
    return float((full - gone).mean()) / span, float((come - empty).mean()) / span


def orders_of(reranker: Reranker, encoding: Encoding, game: MaskedModel, method: str, seed: int) -> list[int]:
    if method == "random order":
        order = list(range(len(game.players)))
        random.Random(seed).shuffle(order)
        return order
    relevance = explain(reranker, encoding, method, **OPTIONS.get(method, {})).tokens
    totals = torch.tensor([float(relevance[list(player.tokens)].sum()) for player in game.players])
    return totals.argsort(descending=True, stable=True).tolist()


def faithfulness(
    reranker: Reranker, encodings: list[Encoding], methods: list[str], name: str
) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {method: defaultdict(list) for method in methods}
    begin, left_out = time.monotonic(), 0
    for number, encoding in enumerate(encodings):
        game = MaskedModel(reranker, encoding, find_players(encoding, "word", ("document",)))
        full, empty = game.logits([[], range(len(game.players))]).tolist()
        if full - empty < 0.5 or len(game.players) < 6:
            left_out += 1  # the document does not raise the score, so there is nothing to be faithful to
            continue
        for method in methods:
            order = orders_of(reranker, encoding, game, method, number)
            deletion, insertion = curves(game, order)
            found[method]["deletion"].append(deletion)
            found[method]["insertion"].append(insertion)
    print(f"{name}: {len(encodings) - left_out} of {len(encodings)} pairs ({time.monotonic() - begin:.0f} s)", flush=True)
    return found


def pointing(reranker: Reranker, encodings: list[Encoding], boxes: list[Box], method: str) -> list[float]:
    """Whether the middle of the hottest cell lies on the emoji that the query names."""
    hits = []
    for encoding, (left, top, right, bottom) in zip(encodings, boxes, strict=True):
        shown = explain(reranker, encoding, method, **OPTIONS.get(method, {})).pictures[0]
        row, column = divmod(int(shown.cells.argmax()), shown.cells.shape[1])
        x0, y0, x1, y1 = shown.picture.cell_box(row, column)
        hits.append(float(left <= (x0 + x1) / 2 <= right and top <= (y0 + y1) / 2 <= bottom))
    return hits


def randomised(model: Path, encodings: list[Encoding], method: str, draws: int) -> dict[str, list[list[float]]]:
    """Rank correlation with the explanation before, over the document's tokens, after the weights are re-initialized from the last
    part to the first (cascading randomisation, Adebayo et al. 2018): by part, (draws, encodings)."""
    reranker = Reranker.from_pretrained(model, dtype="float32")
    trained = {name: weight.clone() for name, weight in reranker.model.state_dict().items()}

    def documents() -> list[Tensor]:
        return [
            explain(reranker, e, method).tokens[
                [i for i, o in enumerate(e.origins) if o.side == "document" and o.kind != "template"]
            ]
            for e in encodings
        ]

    before = documents()
    found: dict[str, list[list[float]]] = defaultdict(list)
    parts = [("head", reranker.model.head)]
    parts += [(f"layer {i}", layer) for i, layer in reversed(list(enumerate(reranker.model.decoder.layers)))]
    parts += [("embeddings", reranker.model.decoder.embed_tokens)]
    for draw in range(draws):
        generator = torch.Generator().manual_seed(draw)
        reranker.model.load_state_dict(trained)
        for name, part in parts:
            with torch.no_grad():
                for parameter in part.parameters():
                    if parameter.ndim > 1:
                        parameter.normal_(0.0, float(parameter.std()), generator=generator)
            found[name].append([pearson_correlation(ranks(a), ranks(b)) for a, b in zip(before, documents(), strict=True)])
    return found


def randomised_table(weights: dict[str, dict[str, list[list[float]]]]) -> list[str]:
    """Of each method the mean correlation, and the mean of absolute values: where a random head turns an explanation about, the
    first is near 0 and the second is not."""
    lines = [
        f"| re-initialized, down to | {' | '.join(f'{method} | absolute' for method in weights)} |",
        "| --- |" + " --- |" * (2 * len(weights)),
    ]
    for part in next(iter(weights.values())):
        cells = []
        for found in weights.values():
            values = torch.tensor(found[part])
            cells += [f"{values.mean():.2f}", f"{values.abs().mean():.2f}"]
        lines.append(f"| {part} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("weights/m0-nano"))
    parser.add_argument("--data", type=Path, default=Path("build/nano-data"))
    parser.add_argument(
        "--pairs", type=int, nargs=2, default=[355, 412], metavar=("TEXTS", "PICTURES"),
        help="those whose document does not raise the score are left out",
    )  # fmt: skip
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--keep", type=Path, help="a folder for what each part has found; what lies there is not done again")
    parser.add_argument("--games", type=int, default=300, help="pointing games of each size")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS], default=[*METHODS], metavar="METHOD")
    parser.add_argument(
        "--recommended", nargs="+", choices=[*METHODS], default=["frozen_gradient", "attnlrp", "attention_gradient"], metavar="METHOD",
        help="methods of the randomisation test",
    )  # fmt: skip
    parser.add_argument("--draws", type=int, default=8, help="of random weights")
    parser.add_argument("--write", type=Path, help="put the tables between this file's marks, and a plot into ../pictures")
    parser.add_argument("--figures", type=Path, help="write the figures as JSON")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    reranker = Reranker.from_pretrained(options.model, dtype="float32")
    texts = text_pairs(options.data, options.pairs[0], reranker)
    methods = [*options.methods, "random order"]

    def part(name: str, make: Callable[[], Any]) -> Any:
        """What was found for a part, by this call or an earlier one that kept it."""
        file = options.keep / f"{name}.json" if options.keep else None
        if file and file.exists():
            return json.loads(file.read_text(encoding="utf-8"))
        if name not in options.parts:
            return None
        found = make()
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(found), encoding="utf-8")
        return found

    def play() -> tuple[dict[str, float], dict[str, dict[str, list[float]]]]:
        points: dict[str, dict[str, list[float]]] = {method: {} for method in options.methods}
        chance = {}
        for grid in GRIDS:
            name = f"{grid[0] * grid[1]}"
            sheets, boxes = picture_pairs(options.data, options.games, reranker, any_name=True, grid=grid)
            covered = [(right - left) * (bottom - top) for left, top, right, bottom in boxes]
            chance[name] = sum(covered) / len(covered) / (grid[0] * grid[1] * SPACE**2)
            for method in options.methods:
                points[method][name] = pointing(reranker, sheets, boxes, method)
            shown_here = ", ".join(f"{m} {sum(p[name]) / len(p[name]):.3f}" for m, p in points.items())
            print(f"pointing, {name} emoji: {shown_here}", flush=True)
        return chance, points

    games = part("pointing", play)
    weights = part(
        "randomised", lambda: {m: randomised(options.model, texts[:40], m, options.draws) for m in options.recommended}
    )
    by_kind = {
        "text": part("texts", lambda: faithfulness(reranker, texts, methods, "texts")),
        "picture": part(
            "pictures",
            lambda: faithfulness(reranker, picture_pairs(options.data, options.pairs[1], reranker)[0], methods, "pictures"),
        ),
    }
    if games is None or weights is None or None in by_kind.values():
        return
    chance, points = games
    lines = [
        f"| method | text: deletion | text: insertion | picture: deletion | picture: insertion | {' | '.join(f'pointing, {name}' for name in chance)} |",
        "| --- |" + " --- |" * (4 + len(chance)),
    ]
    figures: dict[str, Any] = {"pairs": {kind: len(found["random order"]["deletion"]) for kind, found in by_kind.items()}}
    for method in methods:
        cells = [shown(estimate(by_kind[kind][method][measure])) for kind in by_kind for measure in ("deletion", "insertion")]
        cells += [
            shown(estimate(points[method][name])) if method in points else f"{share:.2f} (chance)"
            for name, share in chance.items()
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
        figures[method] = {
            kind: {measure: vars(estimate(values)) for measure, values in by_kind[kind][method].items()} for kind in by_kind
        }
        if method in points:
            figures[method]["pointing"] = {name: vars(estimate(hits)) for name, hits in points[method].items()}
    lines += [
        "",
        f"{figures['pairs']['text']} text pairs, {figures['pairs']['picture']} picture pairs, {options.games} pointing games of each size; chance is "
        "the share of the picture that the named emoji covers.",
    ]
    lines += [
        "",
        "Rank correlation with the explanation before, after weights are re-initialized from the last part to the first: mean over "
        f"{min(40, len(texts))} texts and {options.draws} draws, and mean of absolute values.",
        "",
        *randomised_table(weights),
    ]
    figures["randomised"] = weights
    text = "\n".join(lines)
    print(text)
    if options.figures:
        options.figures.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if options.write:
        write_between(options.write, MARKS, text)
        plot(by_kind, methods, options.write.parent.parent / "pictures" / "faithfulness.png")


def plot(by_kind: dict[str, dict[str, dict[str, list[float]]]], methods: list[str], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, (kind, found) in zip(figure.subplots(1, 2, sharey=True), by_kind.items(), strict=True):
        for shift, measure in ((-0.15, "deletion"), (0.15, "insertion")):
            values = [estimate(found[method][measure]) for method in methods]
            ends = [[v.mean - v.low for v in values], [v.high - v.mean for v in values]]
            rows = [place + shift for place in range(len(methods))]
            axes.errorbar([v.mean for v in values], rows, xerr=ends, fmt="o", label=measure, capsize=2, markersize=4)
        axes.set_yticks(range(len(methods)), methods)
        axes.set_title(kind)
        axes.set_xlabel("share of the logit's range")
        axes.invert_yaxis()
        axes.legend(fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
