"""Pages and records, beside the same pages as decoded arrays, beside pdftoppm, and in memory.

    python scripts/bench/documents.py [--only released nano poppler records] [--pdf FILE] [--runs 3]
        [--records 100000] [--folder DIR]

| row | what | compared with | goal |
| --- | --- | --- | --- |
| released | 20 pages of a PDF, released size with random weights in bfloat16 | the same pages as decoded arrays | at most 1.02 times the time |
| nano | 200 pages, m0-nano | the same pages as decoded arrays | at most 1.3 times the time |
| poppler | `m0 rank` of the same 200 pages, m0-nano | pdftoppm -r 200 to PNG, then `m0 rank` of the PNGs | 2.5 times as fast |
| records | `m0 rank --top-n 100` of 100,000 JSON lines, m0-nano, prefix cache off | memory with the model loaded | at most 200 MiB more, and 200 bytes a further record |

Without --pdf the PDF is made with typst (a page of text, headings and tables, A4). Both ways take turns in one process; the table has medians,
with the smallest and largest. Needs the extra `pages`; poppler needs poppler-utils; released writes a checkpoint of 5 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

QUERY = "how to configure the network after installation"
WORDS = (
    "the network must be configured after the system was installed on the disk and every service asks for its own file".split()
)
STAGES = ("released", "nano", "poppler", "records")


def make_pdf(path: Path, pages: int) -> Path:
    """A PDF of text, headings and tables."""
    import typst

    body = []
    for page in range(pages):
        lines = [" ".join(WORDS[(page + line * 7 + i) % len(WORDS)] for i in range(90)) for line in range(5)]
        cells = ", ".join(f"[{WORDS[(page + i) % len(WORDS)]} {page * i}]" for i in range(16))
        body.append(f"= Section {page + 1}\n\n" + "\n\n".join(lines) + f"\n\n#table(columns: 4, {cells})\n")
    source = path.with_suffix(".typ")
    source.write_text('#set page("a4")\n#set text(size: 10pt)\n' + "\n#pagebreak()\n".join(body), encoding="utf-8")
    typst.compile(str(source), output=str(path))
    return path


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def timed(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def decoded_pages(pdf: Path, pages: int) -> list[Any]:
    """As a user who draws pages with pypdfium2 has them, (height, width, 3) each, uint8."""
    import pypdfium2

    document = pypdfium2.PdfDocument(pdf)
    document.init_forms()
    arrays = []
    for number in range(pages):
        page = document[number]
        bitmap = page.render(scale=200 / 72, rev_byteorder=True)
        arrays.append(bitmap.to_numpy()[:, :, :3].copy())
        bitmap.close()
        page.close()
    document.close()
    return arrays


def against_arrays(name: str, reranker: Any, pdf: Path, pages: int, runs: int) -> None:
    from m0.inputs.pages import read_pages

    arrays = decoded_pages(pdf, pages)
    wanted = f"1-{pages}"
    scores = {}
    of_pdf, of_arrays = [], []
    for turn in range(runs + 1):  # the first warms up
        for kind, times, documents in (
            ("pdf", of_pdf, lambda: read_pages(pdf, wanted)),
            ("arrays", of_arrays, lambda: arrays),
        ):
            reranker.documents.clear()
            warm = sum(int(array[::16].sum()) for array in arrays)  # memory that nobody touched for long may lie elsewhere
            assert warm
            begin = time.perf_counter()
            ranking = reranker.rank(QUERY, documents())
            if turn:
                times.append(time.perf_counter() - begin)
            scores[kind] = {result.index: result.score for result in ranking}
    apart = max(abs(scores["pdf"][i] - scores["arrays"][i]) for i in scores["pdf"])
    share = [a / b for a, b in zip(of_pdf, of_arrays, strict=True)]
    print(
        f"| {name} | {pages} pages | {spread(of_pdf)} s | decoded arrays: {spread(of_arrays)} s | {spread(share)} times the time | "
        f"scores at most {apart:.1g} apart |",
        flush=True,
    )


def released(folder: Path, pdf: Path, runs: int) -> None:
    from m0 import DocumentCache, Reranker

    subprocess.run([sys.executable, __file__, "--stage", "write", "--folder", str(folder)], check=True)
    reranker = Reranker.from_pretrained(folder / "model", dtype="bfloat16")
    reranker.documents = DocumentCache(max_bytes=0)
    against_arrays("released", reranker, pdf, 20, runs)


def nano(pdf: Path, runs: int) -> None:
    from m0 import DocumentCache, Reranker

    reranker = Reranker.from_pretrained("m0-nano")
    reranker.documents = DocumentCache(max_bytes=0)
    against_arrays("nano", reranker, pdf, 200, runs)


def poppler(folder: Path, pdf: Path, runs: int) -> None:
    command = [sys.executable, "-m", "m0", "rank", QUERY, "--top-n", "5"]
    ours, theirs, drawing = [], [], []

    def by_pdftoppm() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as pictures:
            begin = time.perf_counter()
            subprocess.run(["pdftoppm", "-r", "200", "-png", "-l", "200", str(pdf), f"{pictures}/page"], check=True)
            drawing.append(time.perf_counter() - begin)
            subprocess.run([*command, pictures], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    for _ in range(runs):
        pages = [f"{pdf}#1-200"]
        ours.append(timed(lambda: subprocess.run([*command, *pages], check=True, stdout=subprocess.DEVNULL)))  # noqa: B023
        theirs.append(timed(by_pdftoppm))
    ratio = [b / a for a, b in zip(ours, theirs, strict=True)]
    print(
        f"| poppler | 200 pages | {spread(ours)} s | pdftoppm, then the PNGs: {spread(theirs)} s, of it {spread(drawing)} s drawing | "
        f"{spread(ratio)} times as fast | |",
        flush=True,
    )


def records(folder: Path, most: int) -> None:
    peaks = {}
    for count in (1, most // 2, most):
        path = folder / f"{count}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for number in range(count):
                text = " ".join(WORDS[(number + i) % len(WORDS)] for i in range(20))
                file.write(json.dumps({"_id": f"document-{number}", "text": f"{number} {text}"}) + "\n")
        output = subprocess.run(
            [sys.executable, __file__, "--stage", "rank", "--folder", str(path)], check=True, capture_output=True, text=True
        ).stdout
        peaks[count] = json.loads(output.strip().splitlines()[-1])
    above = peaks[most]["MiB"] - peaks[1]["MiB"]
    slope = (peaks[most]["MiB"] - peaks[most // 2]["MiB"]) * 2**20 / (most - most // 2)
    print(
        f"| records | {most:,} records | {peaks[most]['seconds']:.0f} s | the model and one record: {peaks[1]['MiB']:.0f} MiB | "
        f"{above:.0f} MiB more | {slope:.0f} bytes a further record |",
        flush=True,
    )


def rank_records(path: Path) -> None:
    from m0.cli.main import main as command

    sys.stdout, shown = open(os.devnull, "w"), sys.stdout  # noqa: SIM115
    begin = time.perf_counter()
    status = command(["rank", QUERY, str(path), "--top-n", "100"])
    seconds = time.perf_counter() - begin
    sys.stdout = shown
    if status:
        sys.exit(f"m0 rank ended with {status}")
    print(json.dumps({"MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, "seconds": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--pdf", type=Path, help="a PDF of at least 200 pages; default: one is made with typst")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--records", type=int, default=100_000, help="how many records; half of them is measured, too")
    parser.add_argument("--folder", type=Path, help="where to put files; default: a temporary folder")
    parser.add_argument("--stage", choices=["write", "rank"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage == "write":
        from training import write_checkpoint

        return write_checkpoint(options.folder / "model")
    if options.stage == "rank":
        return rank_records(options.folder)
    import torch

    torch.set_num_threads(2)
    print("| row | what | m0 | compared with | ratio | |\n| --- | --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        pdf = (options.pdf or make_pdf(folder / "pages.pdf", 200)).absolute()
        if "released" in options.only:
            released(folder, pdf, options.runs)
        if "nano" in options.only:
            nano(pdf, options.runs)
        if "poppler" in options.only:
            poppler(folder, pdf, options.runs)
        if "records" in options.only:
            records(folder, options.records)
    return None


if __name__ == "__main__":
    main()
