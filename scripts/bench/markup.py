"""What is lost of HTML manuals, and what navigation stays: as they are, by markdownify alone, and as m0 reads them.

Each heading, code block, cell, paragraph, item and part of the navigation is given a word of its own, and looked for in the result.
The manuals are those of Debian's packages python3.11-doc, postgresql-doc-15, git-doc, debian-handbook and debian-reference-en.

    python scripts/bench/markup.py [--pages SHARE] [--scores | --encodings]
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lxml import etree

from m0.inputs.markup.html import read_html

DOC = Path("/usr/share/doc")
MANUALS = (
    ("Python 3.11", "python3.11/html", 60, "div.mobile-nav div.related div.sphinxsidebar div.footer a.headerlink nav.contents"),
    ("PostgreSQL 15", "postgresql-doc-15/html", 50, "div.navheader div.navfooter"),
    ("git", "git/html", 40, "div#footer"),
    ("Debian handbook, en", "debian-handbook/html/en-US", 25, "ul.docnav div#banner p#title"),
    ("Debian handbook, ja", "debian-handbook/html/ja-JP", 15, "ul.docnav div#banner p#title"),
    ("Debian handbook, fa", "debian-handbook/html/fa-IR", 10, "ul.docnav div#banner p#title"),
    ("Debian reference", "debian-reference-common/docs", 10, "div.navheader div.navfooter"),
)
"""Name, folder, pages, and what is navigation in it, seen by looking at its pages. The reader knows nothing of these."""
HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
BLOCKS = {
    *HEADINGS,
    "p",
    "div",
    "li",
    "dt",
    "dd",
    "td",
    "th",
    "tr",
    "table",
    "pre",
    "ul",
    "ol",
    "dl",
    "blockquote",
    "br",
    "title",
    "hr",
}
NO_TEXT = {"script", "style", "head", "select", "option", "button", "template", "noscript"}


@dataclass
class Marked:
    """A page with words of its own, by kind, and what of its code and rows is to be found again."""

    page: bytes
    words: dict[str, list[str]] = field(default_factory=dict)
    rows: list[list[str]] = field(default_factory=list)


def parse(data: bytes) -> Any:
    return etree.fromstring(data, etree.HTMLParser(encoding="utf-8"))


def kind_of(element: Any) -> str | None:
    if element.tag in HEADINGS:
        return "headings"
    if element.tag == "pre":
        return "code blocks"
    if element.tag in {"td", "th"}:
        return "cells"
    if element.tag == "p" or element.get("class") == "para":
        return "paragraphs"
    return "items" if element.tag in {"li", "dt", "dd"} else None


def navigation_of(root: Any, selectors: str) -> list[Any]:
    found = []
    for selector in selectors.split():
        tag, sign, name = re.fullmatch(r"(\w+)([.#])([\w-]+)", selector).groups()
        for element in root.iter(tag):
            if name in (element.get("class" if sign == "." else "id") or "").split():
                found.append(element)
    return found


def mark(data: bytes, selectors: str) -> Marked:
    root = parse(data)
    inside = {part for element in navigation_of(root, selectors) for part in element.iter()}
    marked = Marked(b"", {})
    count = 0
    for element in list(root.find("body").iter()):
        if not isinstance(element.tag, str) or any(part.tag in NO_TEXT for part in (element, *element.iterancestors())):
            continue
        kind = (
            "navigation"
            if element in inside and (element.text or "").strip()
            else None
            if element in inside
            else kind_of(element)
        )
        if kind is None or not "".join(element.itertext()).strip():
            continue
        count += 1
        word = f"mark{count}z"
        element.text = f"{word} {element.text or ''}"
        marked.words.setdefault(kind, []).append(word)
        if kind == "cells":
            row = element.getparent()
            if not marked.rows or marked.rows[-1][0] is not row:
                marked.rows.append([row])
            marked.rows[-1].append(word)
    marked.rows = [row[1:] for row in marked.rows if len(row) > 2]
    marked.page = etree.tostring(root, encoding="utf-8", method="html")
    return marked


def code_lines(root: Any) -> Iterator[str]:
    for pre in root.iter("pre"):
        lines = "".join(pre.itertext()).strip("\n").split("\n")
        if len(lines) > 1:
            yield from (line.rstrip() for line in lines if line.strip())


def words_of(root: Any, inside: set[Any]) -> set[str]:
    """Words of what is neither navigation nor a script, blocks apart."""
    pieces: list[str] = []

    def walk(element: Any) -> None:
        if not isinstance(element.tag, str) or element.tag in NO_TEXT or element in inside:
            pieces.append((" " if element.tag in BLOCKS else "") + (element.tail or ""))
            return
        pieces.append((" " if element.tag in BLOCKS else "") + (element.text or ""))
        if element.tag == "img":
            pieces.append(f" {element.get('alt') or ''} ")
        for child in element:
            walk(child)
        pieces.append((" " if element.tag in BLOCKS else "") + (element.tail or ""))

    walk(root.find("body"))
    title = root.find("head/title")
    return split(
        "".join(pieces).replace("\xad", "").replace("\u200b", "") + " " + ((title.text or "") if title is not None else "")
    )


def split(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", text))


def as_it_is(data: bytes) -> str:
    return data.decode("utf-8")


def markdownify_alone(data: bytes) -> str:
    from markdownify import markdownify

    return markdownify(data.decode("utf-8"))


def read(data: bytes) -> str:
    return read_html(data, "page.html")


def measure(reader: Callable[[bytes], str], pages: list[tuple[bytes, str]]) -> list[str]:
    found: Counter[str] = Counter()
    there: Counter[str] = Counter()
    seconds = 0.0
    for data, selectors in pages:
        begin = time.process_time()
        text = reader(data)
        seconds += time.process_time() - begin
        stripped = {line.strip() for line in text.split("\n")}
        root, within = parse(data), "\n".join([*map(str.rstrip, text.split("\n")), ""])
        for line in code_lines(root):
            line = line.replace("\xa0", " ").replace("\u200b", "")
            there["code lines"] += 1
            found["code lines"] += line.strip() in stripped
            if line.startswith("  "):
                there["indents"] += 1
                found["indents"] += f"{line}\n" in within  # of a list's item it has more
        inside = {part for element in navigation_of(root, selectors) for part in element.iter()}
        expected, got = words_of(root, inside), split(text)
        there["words"] += len(expected)
        found["missing"] += len(expected - got)
        there["got"] += len(got)
        found["new"] += len(got - words_of(root, set()))
        marked = mark(data, selectors)
        text = reader(marked.page)
        kept = set(re.findall(r"mark\d+z", text))
        for kind, words in marked.words.items():
            there[kind] += len(words)
            found[kind] += sum(word in kept for word in words)
        by_line = [set(re.findall(r"mark\d+z", line)) for line in text.split("\n")]
        where = {word: number for number, words in enumerate(by_line) for word in words}
        for row in marked.rows:
            there["rows"] += 1
            found["rows"] += len({where.get(word, -1) for word in row}) == 1 and row[0] in where
    cells = [f"{seconds:.2f}", share(found["navigation"], there["navigation"])]
    kinds = ("headings", "code blocks", "cells", "paragraphs", "items")
    cells += [share(there[kind] - found[kind], there[kind]) for kind in kinds]
    cells += [share(found[kind], there[kind]) for kind in ("rows", "code lines", "indents")]
    return [*cells, share(found["missing"], there["words"], 2), share(found["new"], there["got"], 2)]


def share(part: int, whole: int, digits: int = 1) -> str:
    return f"{100 * part / whole:.{digits}f} %" if whole else "-"


def pages_of(folder: str, count: int, selectors: str) -> list[tuple[bytes, str]]:
    """Evenly spread over the manual."""
    paths = sorted(path for path in (DOC / folder).rglob("*.html") if path.stat().st_size > 2000)
    if not paths:
        raise SystemExit(f"{DOC / folder} holds no pages; install the package.")
    step = max(len(paths) / count, 1)
    return [(paths[int(number * step)].read_bytes(), selectors) for number in range(min(count, len(paths)))]


HEAD = (
    "CPU s, navigation left, headings lost, code blocks lost, cells lost, paragraphs lost, items lost, rows whole, "
    "code lines whole, indents kept, words missing, words made up"
).split(", ")
QUESTIONS = (
    ("python3.11/html/library/bisect.html", "How do I keep a list in sorted order when inserting?"),
    ("python3.11/html/library/gzip.html", "How can I compress an existing file with gzip in Python?"),
    ("postgresql-doc-15/html/sql-vacuum.html", "How do I reclaim storage occupied by dead tuples?"),
    ("postgresql-doc-15/html/runtime-config-autovacuum.html", "Which setting turns the autovacuum launcher on?"),
    ("git/html/git-stash.html", "How do I put away my uncommitted changes for a while?"),
    ("git/html/git-bisect.html", "How do I find the commit that introduced a bug?"),
    ("debian-handbook/html/en-US/sect.user-group-databases.html", "Which file lists the users and their home directories?"),
    ("debian-handbook/html/en-US/sect.hostname-name-service.html", "Where is the name of the machine stored?"),
)


def print_scores() -> None:
    from m0 import Reranker

    reranker = Reranker.from_pretrained("m0-nano")
    texts = {path: ((DOC / path).read_bytes().decode("utf-8"), read((DOC / path).read_bytes())) for path, _ in QUESTIONS}
    print("| page | with markup | read | place with markup | place read |\n| --- | --- | --- | --- | --- |")
    for path, question in QUESTIONS:
        columns, places = [], []
        for number in (0, 1):
            scores = {other: float(reranker.score([(question, texts[other][number])])[0]) for other in texts}
            columns.append(scores[path])
            places.append(1 + sum(score > scores[path] for score in scores.values()))
        print(f"| {Path(path).name} | {columns[0]:.3f} | {columns[1]:.3f} | {places[0]} | {places[1]} |")


LEGACY = (
    *(
        ("de-DE", "cp1252"),
        ("fr-FR", "cp1252"),
        ("es-ES", "cp1252"),
        ("pl-PL", "cp1250"),
        ("cs-CZ", "cp1250"),
        ("ru-RU", "cp1251"),
    ),
    *(
        ("ru-RU", "koi8-r"),
        ("el-GR", "cp1253"),
        ("tr-TR", "cp1254"),
        ("fa-IR", "cp1256"),
        ("ja-JP", "shift_jis"),
        ("ja-JP", "euc_jp"),
    ),
    *(("zh-CN", "gb18030"), ("zh-TW", "big5"), ("ko-KR", "euc_kr")),
)


def print_encodings() -> None:
    """Pages of the Debian handbook in older encodings, their declarations taken out."""
    from m0.errors import InputError
    from m0.inputs.markup import decode_any

    print("| handbook | encoding | pages | read right | refused | read wrong |\n| --- | --- | --- | --- | --- | --- |")
    for language, encoding in LEGACY:
        counts: Counter[str] = Counter()
        for path in sorted((DOC / "debian-handbook/html" / language).glob("sect*.html"))[:30]:
            text = re.sub(r"<meta[^>]*charset[^>]*>|<\?xml[^>]*>", "", path.read_text(encoding="utf-8"))
            data = text.encode(encoding, "ignore")
            try:
                counts["right" if decode_any(data, "page") == data.decode(encoding) else "wrong"] += 1
            except InputError:
                counts["refused"] += 1
        print(f"| {language} | {encoding} | {counts.total()} | {counts['right']} | {counts['refused']} | {counts['wrong']} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pages", type=float, default=1.0, help="share of the pages that are taken")
    parser.add_argument("--scores", action="store_true", help="m0-nano's scores of eight pages instead")
    parser.add_argument(
        "--encodings", action="store_true", help="how often an encoding that is not declared is guessed right instead"
    )
    options = parser.parse_args()
    if options.encodings:
        print_encodings()
        return
    if options.scores:
        print_scores()
        return
    pages = [(name, pages_of(folder, round(count * options.pages), sure)) for name, folder, count, sure in MANUALS]
    everything = [page for _, some in pages for page in some]
    print(f"{len(everything)} pages\n\n| way | {' | '.join(HEAD)} |\n|{' --- |' * (len(HEAD) + 1)}")
    for name, reader in (("as it is", as_it_is), ("markdownify alone", markdownify_alone), ("m0", read)):
        print(f"| {name} | {' | '.join(measure(reader, everything))} |", flush=True)
    for name, some in pages:
        print(f"| m0: {name} | {' | '.join(measure(read, some))} |", flush=True)


if __name__ == "__main__":
    main()
