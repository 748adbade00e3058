"""What the page of an explanation does in a browser (`make test-browser`)."""

import numpy as np
import pytest
from PIL import Image

from m0.explain.html import page
from m0.explain.numbers import decimals_of, format_relevance, top_words
from tests.conftest import noise
from tests.explain.browser import browse
from tests.inputs.pdfs import pages, words

pytest.importorskip("pypdfium2")
pytestmark = pytest.mark.browser
LONG_WORD = "Donaudampfschifffahrtsgesellschaftskapitänsmützenband" * 3


@pytest.fixture(scope="module")
def found(tiny, tmp_path_factory):
    """A page of a PDF, a text with a picture, and a text that runs from right to left."""
    path = tmp_path_factory.mktemp("pdf") / "report.pdf"
    text = [words(f"line {number} of compass and dolphin, needle and north", 40, 760 - 14 * number, 10) for number in range(40)]
    path.write_bytes(pages(["".join([words("Compass", 40, 790, 20), *text])], "/MediaBox [0 0 595 842]"))
    return [
        tiny.explain("compass needle", {"pdf": path}),
        tiny.explain(["red heart", noise(90, 90, 4)], [f"A heart that is red; {LONG_WORD}", noise(840, 560, 2), "the end"]),
        tiny.explain("heart", "שלום עולם compass לב", method="attention"),
    ]


@pytest.fixture(scope="module")
def html(found):
    return page(found, names=["report.pdf", LONG_WORD, "c"])


@pytest.mark.parametrize("width", [380, 1200])
def test_nothing_is_wider_than_the_window(html, tmp_path, width):
    result = browse(
        tmp_path,
        html,
        """result.inner = view.innerWidth; result.widths = [];
        const measure = () => result.widths.push(page.documentElement.scrollWidth);
        measure(); all('.zoom').forEach(button => button.click()); measure(); all('details').forEach(d => d.open = true); measure();
        key('n', page.body); measure(); result.zoomed = one('.frame.full .pic').getBoundingClientRect().width;""",
        width=width,
    )
    assert result["inner"] == width
    assert result["widths"] == [width] * 4
    assert result["zoomed"] > 1000  # an A4 page at its own resolution, which is moved about in its frame


def test_the_page_lists_what_the_terminal_lists(html, found, tmp_path):
    result = browse(
        tmp_path,
        html,
        "result.lists = all('.top').map(list => [...list.children].map(entry => [entry.querySelector('bdi').textContent, "
        "entry.querySelector('b').textContent])); result.stills = all('.still').length;",
    )
    for listed, explanation in zip(result["lists"], found, strict=True):
        decimals, signed = decimals_of(explanation), explanation.signed
        assert listed == [[word.text, format_relevance(word.relevance, decimals, signed)] for word in top_words(explanation)]
    assert result["stills"] == 0


def test_the_value_stands_next_to_the_pointer(html, found, tmp_path):
    result = browse(
        tmp_path,
        html,
        """const word = one('.p'); let [x, y] = middle(word); point(word, x, y); result.word = tip();
        const box = one('.tip').getBoundingClientRect(); result.near = Math.hypot(box.left - x, box.top - y);
        const canvas = one('canvas'), area = canvas.getBoundingClientRect(); point(canvas, area.right - 2, area.top + 2); result.cell = tip();
        result.inside = one('.tip').getBoundingClientRect().right <= view.innerWidth;
        point(page.body, 1, 1); point(one('h2'), 5, 5); result.gone = tip();
        const text = all('.w')[0]; text.focus(); result.described = text.getAttribute('aria-describedby') === one('.tip').id;""",
        width=380,
    )
    first, cells = found[0].page_words[0], found[0].pictures[0].cells
    decimals = decimals_of(found[0])
    assert result["word"].startswith(f"{first.text}: {format_relevance(first.relevance, decimals, True)} · cell (")
    column = cells.shape[1] - 1
    assert result["cell"] == f"cell (0, {column}): {format_relevance(float(cells[0, column]), decimals, True)}"
    assert result["near"] < 40
    assert result["inside"]
    assert result["gone"] is None
    assert result["described"]


def test_words_and_cells_can_be_reached_by_keyboard(html, found, tmp_path):
    result = browse(
        tmp_path,
        html,
        """result.stops = all('.m0').map(root => [...root.querySelectorAll('.text, .pagewords')].map(
            group => group.querySelectorAll('[tabindex="0"]').length));
        const words = one('.pagewords'); words.querySelector('[tabindex="0"]').focus(); key('ArrowRight'); key('ArrowDown');
        result.third = [page.activeElement.dataset.p, page.activeElement.getAttribute('aria-label'), tip(), page.activeElement.ariaSelected];
        result.ring = view.getComputedStyle(page.activeElement).outlineStyle;
        key('End'); result.last = page.activeElement.dataset.p; key('ArrowRight'); result.still = page.activeElement.dataset.p;
        key('Home'); result.first = page.activeElement.dataset.p; result.one = words.querySelectorAll('[tabindex="0"]').length;
        const canvas = one('canvas'); canvas.focus(); key('ArrowDown'); key('ArrowRight'); key('ArrowRight'); key('ArrowLeft');
        result.cell = [tip(), one('.said').textContent, one('.cursor').hidden]; key('Escape'); result.escaped = tip();
        canvas.blur(); result.blurred = one('.cursor').hidden;
        const right = all('.document .text').at(-1); right.querySelector('.w').focus(); key('ArrowLeft');
        result.leftwards = page.activeElement === right.querySelectorAll('.w')[1];""",
    )
    assert all(stops == [1] * len(stops) for stops in result["stops"])
    words, decimals = found[0].page_words, decimals_of(found[0])
    value = format_relevance(words[2].relevance, decimals, True)
    assert result["third"] == ["2", f"{words[2].text}, {value}", f"{words[2].text}: {value}", "true"]
    assert result["ring"] == "solid"
    assert (result["last"], result["still"], result["first"], result["one"]) == (*[str(len(words) - 1)] * 2, "0", 1)
    cell = f"cell (1, 1): {format_relevance(float(found[0].pictures[0].cells[1, 1]), decimals, True)}"
    assert result["cell"] == [cell, cell, False]
    assert result["escaped"] is None
    assert result["blurred"]
    assert result["leftwards"]


def test_jumping_to_highlighted_words(html, found, tmp_path):
    result = browse(
        tmp_path,
        html,
        """result.seen = []; const root = one('.m0'), told = () => result.seen.push([page.activeElement.dataset.p, root.querySelector('.said').textContent]);
        key('n', page.body); told(); root.querySelector('.next').click(); told(); key('p'); told(); key('p'); told();
        result.visible = (box => box.top >= 0 && box.bottom <= view.innerHeight)(page.activeElement.getBoundingClientRect());
        await wait(100); const near = middle(page.activeElement), box = one('.tip').getBoundingClientRect();
        result.scrolled = view.scrollY; result.tip = [tip(), Math.abs(box.top - near[1]) < 60];
        root.querySelectorAll('.top button')[0].click(); result.chip = page.activeElement.dataset.p;
        page.activeElement.blur(); const other = all('.m0')[2]; other.querySelector('.next').click();
        result.other = other.contains(page.activeElement) && page.activeElement.classList.contains('hi');""",
        height=600,
    )
    words = found[0].page_words
    top = [id(word) for word in top_words(found[0])]
    order = [number for number, word in enumerate(words) if id(word) in top]
    numbers = [order[0], order[1], order[0], order[-1]]
    assert [seen[0] for seen in result["seen"]] == list(map(str, numbers))
    for place, (number, (_, said)) in enumerate(zip(numbers, result["seen"], strict=True)):
        value = format_relevance(words[number].relevance, decimals_of(found[0]), True)
        assert said == f"Highlighted word {(1, 2, 1, len(order))[place]} of {len(order)}: {words[number].text}: {value}"
    assert result["visible"]
    assert result["scrolled"] > 0
    assert result["tip"] == [result["seen"][-1][1].partition(": ")[2], True]
    assert result["chip"] == str(next(n for n, word in enumerate(words) if id(word) == top[0]))
    assert result["other"]


def test_a_word_of_the_query_shows_what_answers_it(html, found, tmp_path):
    result = browse(
        tmp_path,
        html,
        """const root = all('.m0')[1], asked = root.querySelector('.query .w'), shown = () => root.querySelector('.document .w').style.getPropertyValue('--a');
        result.role = asked.getAttribute('role'); result.before = [asked.ariaPressed, shown()];
        asked.focus(); key('Enter'); result.during = [asked.ariaPressed, root.querySelector('.row').textContent, shown()];
        point(root.querySelector('.document .w'), 5, 5); result.value = root.querySelector('.tip').textContent;
        key('Enter'); result.after = [asked.ariaPressed, root.querySelector('.row').textContent, shown()];
        root.querySelector('.query canvas').focus(); key(' '); result.picture = root.querySelector('.row').textContent;
        one('.query .w').click(); result.page = all('.p')[0].getAttribute('aria-label');
        const canvas = one('.document canvas'); canvas.focus(); key('Home'); result.cell = one('.said').textContent;""",
    )
    _, _, values = found[1].interaction.by_word(found[1].encoding)
    assert result["role"] == "button"
    assert result["during"][0] == "true"
    assert result["during"][1].startswith('What answers "red".')
    number = float(result["value"].rpartition(": ")[2])
    assert number == pytest.approx(float(values[0, 0]), abs=2e-3 * float(values[0].abs().max()) + 1e-9)
    assert result["after"] == [result["before"][0], "", result["before"][1]]
    assert result["picture"].startswith('What answers "picture 1".')
    from m0.explain.page_words import sum_in_boxes

    cells = found[0].interaction.on_picture(found[0].encoding, 0)[1][0].numpy()
    expected = sum_in_boxes(cells, np.array([word.cells for word in found[0].page_words]))[0]
    assert float(result["page"].rpartition(", ")[2]) == pytest.approx(expected, abs=5e-3 * np.abs(cells).max())


def test_the_heat_map_fades_and_pictures_turn_grey(html, tmp_path):
    result = browse(
        tmp_path,
        html,
        """const canvas = one('canvas'), bar = one('input[type=range]'), strength = () => +view.getComputedStyle(canvas).opacity; result.before = strength();
        bar.value = 0; bar.dispatchEvent(new view.Event('input')); result.faded = strength();
        result.filter = [view.getComputedStyle(one('.seen')).filter]; one('.togrey').click(); result.filter.push(view.getComputedStyle(one('.seen')).filter);
        result.same = ['img.seen', 'canvas'].map(what => { const box = one(what).getBoundingClientRect(); return [box.left, box.top, box.width, box.height].map(Math.round); });""",
    )
    assert result["before"] == pytest.approx(0.7)
    assert result["faded"] == 0
    assert result["filter"] == ["none", "grayscale(1)"]
    assert result["same"][0] == result["same"][1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1200])
def test_it_looks_as_meant(html, tmp_path, width, scheme):
    """Paper as the reader wants it, black print on the page, and colour over it."""
    picture = tmp_path / "seen.png"
    browse(tmp_path, html, "key('n', page.body);", width, 2600, scheme, picture)
    seen = np.asarray(Image.open(picture).convert("RGB"), dtype=int)[:, :width]
    paper = {"light": (255, 255, 255), "dark": (0x14, 0x17, 0x1A)}[scheme]
    assert tuple(seen[3, 3]) == paper
    orange = (seen[..., 0] - seen[..., 2] > 40).mean()
    blue = (seen[..., 2] - seen[..., 0] > 20).mean()
    assert orange > 0.002
    assert blue > 0.002
