"""A pruned tree made ready to be written: every block one that markdownify knows, every mark inside a line gone, tables even."""

from __future__ import annotations

import re
from typing import Any

from m0.inputs.markup.tree import HEADINGS, drop, lxml_etree, words_of

AS_DIV = {
    *(
        "main",
        "header",
        "footer",
        "nav",
        "aside",
        "address",
        "fieldset",
        "legend",
        "form",
        "details",
        "summary",
        "figure",
        "hgroup",
    ),
    *("figcaption", "center", "dialog", "article", "section", "body", "search", "optgroup", "option", "caption", "blockquote"),
}
BLOCKS = {"div", "p", "ul", "ol", "li", "dl", "dt", "dd", "table", "tr", "td", "th", "pre", *HEADINGS}
KEPT = {*BLOCKS, "br", "q"}
APART = {"label", "button", "img", "option", "math"}
"""Parts of lines that a reader sees apart."""
MOST_COLUMNS = 50
"""That one cell takes."""
_LINE_NUMBERS = re.compile(r"(line)?-?(nos?|numbers?|nums?)|linenodiv|linenos?")


def tidy(root: Any) -> None:
    """In place. `root` becomes a div."""
    root.tag = "div"
    for element in list(root.iter()):
        for key in ("number", "columns"):  # which are this file's own
            element.attrib.pop(key, None)
        if element is root:
            continue
        if element.tag in AS_DIV:
            element.tag = "div"
        elif element.tag == "hr":
            element.tag = "br"
        elif element.tag in {"menu", "dir"}:
            element.tag = "ul"
        elif element.tag in {"xmp", "listing", "plaintext"}:
            element.tag = "pre"
        elif element.tag in {"sup", "img"} or (element.tag == "a" and _leads_to_note(element)):
            _as_text(element)
    for pre in list(root.iter("pre")):
        _make_lines(pre)
    for table in list(root.iter("table")):
        if table.getparent() is not None:
            _even_table(table)
    _flatten_lines(root)
    for items in root.iter("ol"):
        _number(items)
    _drop_wrappers(root)
    for element in root.iter():
        kept = {key: element.get(key) for key in ("number", "columns") if element.get(key)}
        if element.tag in {"td", "th"}:
            kept["colspan"] = str(_span(element))
        element.attrib.clear()  # damaged pages have names that cannot be taken out one by one
        element.attrib.update(kept)


def _leads_to_note(link: Any) -> bool:
    """As books say it, in XHTML and in HTML."""
    kinds = (link.get("role"), link.get("epub:type"), link.get("{http://www.idpf.org/2007/ops}type"))
    return "doc-noteref" in kinds or "noteref" in kinds


def _as_text(element: Any) -> None:
    """A picture is its description. 10<sup>6</sup> is 10^6, and a note's number stands in brackets."""
    if element.tag == "img":
        element.text = element.get("alt")
        return
    words = words_of(element)
    if element.tag == "a" and element.getparent().tag == "sup":
        return  # which has its brackets
    if any(True for _ in element.iter("a")) and words.isalnum():
        element.text = f"[{element.text or ''}"
        if len(element):
            element[-1].tail = f"{element[-1].tail or ''}]"
        else:
            element.text += "]"
    elif re.fullmatch(r"[-+−]?\d+([.,/]\d+)?|[-+−]?[a-zA-Z]", words):
        element.text = "^" + (element.text or "")


def _make_lines(pre: Any) -> None:
    """Its text alone: breaks and blocks inside become line ends; numbers of lines go."""
    for element in list(pre.iter()):
        classes = (element.get("class") or "").lower()
        if element is not pre and _LINE_NUMBERS.fullmatch(classes) and re.fullmatch(r"[\s\d]*", words_of(element)):
            drop(element, apart=False)
    pieces = [""]

    def add(text: str | None) -> None:
        if text:
            pieces.append(text)

    for event, element in lxml_etree().iterwalk(pre, events=("start", "end")):
        block = element is not pre and element.tag in BLOCKS
        ended = pieces[-1].endswith("\n") or len(pieces) == 1
        if event == "start":
            add("\n" if element.tag == "br" or (block and not ended) else "")
            add(element.text)
        elif element is not pre:
            add("\n" if block and not ended and not (element.tail or "").startswith("\n") else "")
            add(element.tail)
    for child in list(pre):
        pre.remove(child)
    pre.text = "".join(pieces)


def _own_rows(table: Any) -> list[list[Any]]:
    rows = [row for row in table.iter("tr") if next(row.iterancestors("table")) is table]
    return [[cell for cell in row if cell.tag in {"td", "th"}] for row in rows]


def _even_table(table: Any) -> None:
    """Rows directly in the table, its title before it. What only arranges a page becomes blocks."""
    for row in table.iter("tr"):
        for cell in row.iterchildren("td"):
            if _LINE_NUMBERS.fullmatch((cell.get("class") or "").lower()) and re.fullmatch(r"[\s\d]*", words_of(cell)):
                for child in list(cell):
                    cell.remove(child)
                cell.text = None
    rows = _own_rows(table)
    if _only_arranges(table, rows):
        for part in list(table.iter("tbody", "thead", "tfoot", "tr", "td", "th", "colgroup", "col")):
            if next(part.iterancestors("table")) is table:
                part.tag = "div"
        table.tag = "div"
        return
    for inner in list(table.iter("table", *HEADINGS, "pre")):
        if inner is not table:
            for part in list(inner.iter("table", "tbody", "thead", "tfoot", "tr", "td", "th", "pre", *HEADINGS)):
                part.tag = "div"
    for part in list(table):
        if part.tag == "div":  # its caption
            part.tail = None
            table.addprevious(part)
        elif part.tag in {"colgroup", "col"}:
            table.remove(part)
    head = table.find("thead")
    head_rows = len(head.findall("tr")) if head is not None else 0
    ordered = [row for row in table.iter("tr") if next(row.iterancestors("table")) is table]
    feet = [row for row in ordered if row.getparent().tag == "tfoot"]
    ordered = [row for row in ordered if row not in feet] + feet
    for part in list(table):
        table.remove(part)
    table.text = None
    for row in ordered:
        row.text = row.tail = None
        table.append(row)
    if ordered:
        first = ordered[0]
        ordered[max(head_rows, 1) - 1 if head_rows < len(ordered) else 0].set("columns", str(_columns(first)))


def _columns(row: Any) -> int:
    return sum(map(_span, row))


def _span(cell: Any) -> int:
    span = cell.get("colspan") or ""
    return min(max(int(span), 1), MOST_COLUMNS) if re.fullmatch("[0-9]{1,4}", span) else 1


def _only_arranges(table: Any, rows: list[list[Any]]) -> bool:
    if (table.get("role") or "").lower() in {"presentation", "none"}:
        return True
    full = [row for row in rows if sum(bool(words_of(cell)) for cell in row) > 1]
    if not full:
        return True
    titled = any(cell.tag == "th" for cell in rows[0])
    inner = any(True for element in table.iter("table", *HEADINGS) if element is not table)
    code = any("\n" in (pre.text or "").strip() for pre in table.iter("pre"))
    return (inner and not (titled and len(full) > 1)) or (code and len(full) < 2)


def _flatten_lines(root: Any) -> None:
    """What stands in lines is its text. Custom elements are parted from their neighbours, for what they look like is not known."""
    for element in list(root.iter()):
        if element.tag in KEPT:
            empty = len(element) == 0 and not (element.text or "").strip() and element is not root
            if empty and element.tag in BLOCKS - {"td", "th"} and element.getparent().tag != "tr":
                drop(element)
            continue
        if element.tag in APART or "-" in element.tag:
            element.text = " " + (element.text or "")
            if len(element):
                element[-1].tail = (element[-1].tail or "") + " "
            else:
                element.text += " "
        element.tag = "span"  # damaged pages have names that strip_tags does not take
    lxml_etree().strip_tags(root, "span")


def _number(items: Any) -> None:
    start = items.get("start") or ""
    number = int(start) if re.fullmatch(r"-?[0-9]{1,9}", start) else 1
    for item in items.iterchildren("li"):
        value = item.get("value") or ""
        number = int(value) if re.fullmatch(r"-?[0-9]{1,9}", value) else number
        item.set("number", str(number))
        number += 1


def _drop_wrappers(root: Any) -> None:
    """Of a div that holds nothing but one block, the block is left: pages nest dozens of these."""
    for element in list(root.iter("div")):
        parent = element.getparent()
        if (
            element is root
            or parent is None
            or len(element) != 1
            or (element.text or "").strip()
            or (element[0].tail or "").strip()
        ):
            continue
        child = element[0]
        if child.tag in BLOCKS - {"li", "dt", "dd", "tr", "td", "th"}:
            child.tail = element.tail
            parent.replace(element, child)
