"""Web pages: what is kept whole, what goes, and in which encoding."""

import tarfile
from pathlib import Path

import pytest

pytest.importorskip("lxml")
pytest.importorskip("markdownify")

from m0.errors import InputError, MissingExtraError
from m0.inputs.markup import read_markup

DATA = Path(__file__).parent.parent / "data" / "markup"
DOCBOOK = """<!DOCTYPE html><html><head><meta charset="windows-1252"><title>Pump</title></head><body><ul class="docnav">
<li>Previous</li><li>Next</li></ul><div class="section"><div class="titlepage"><div><div><h2 class="title">Größe 0: the pump</h2>
</div></div></div><p>Its “seal” must face the inlet.</p><pre><code>set pump on
    wait 5
</code></pre><dl><dt>pressure</dt><dd>4 bar</dd></dl><table><caption>Limits</caption><tr><th>part</th><th>torque</th></tr>
<tr><td>pump</td><td>12 Nm</td></tr></table></div></body></html>"""


@pytest.fixture(scope="module")
def pages():
    with tarfile.open(DATA / "pages.tar.xz") as archive:
        return {file.name: archive.extractfile(file).read() for file in archive if file.name.endswith(".html")}


def read(body, name="x.html", **more):
    return read_markup((body if isinstance(body, bytes) else body.encode("utf-8")), name, **more)


def inside(body, head=""):
    return read(f"<html><head>{head}</head><body>{body}</body></html>")


REAL = {
    "python-colorsys.html": (
        [
            "Python 3.11.2 documentation\n\n# colorsys — Conversions between color systems",
            "colorsys.rgb_to_hls(r, g, b)\n:   Convert",
        ],
        ["¶", "Theme", "Previous topic", "Report a Bug", "Copyright", "Quick search"],
    ),
    "postgresql-sql-checkpoint.html": (
        ["## CHECKPOINT", "pg_checkpoint role", "PostgreSQL language extension."],
        ["Prev", "Home", "CLUSTER"],
    ),
    "postgresql-tutorial-fk.html": (
        ["## 3.3. Foreign Keys", "\n        city      varchar(80) references cities(name),\n"],
        ["Prev", "Transactions"],
    ),
    "git-count-objects.html": (
        ["# git-count-objects(1) Manual Page", "## SYNOPSIS", "size-garbage: disk space consumed"],
        ["Last updated"],
    ),
    "handbook-ja.html": (
        ["## 9.12. 電源管理、Advanced", "BEWARE グラフィックカードとスタンバイ"],
        ["戻る", "Product Site", "Prev", "Download"],
    ),
    "handbook-fa.html": (["## 9.12. مدیریت نیرو؛", "رایانه‌‌های"], ["Prev", "Next", "Documentation Site"]),
    "libffi-simple-example.html": (
        ["### 2.2 Simple Example", "\n\t\t       &ffi_type_sint, args) == FFI_OK)\n"],
        ["Next:", "Up:", "Contents"],
    ),
    "libxslt-faq.html": (
        ["## FAQ", "xsltproc --param test \"'alpha'\" foo.xsl foo.xml", "1. Troubles compiling"],
        ["Main Menu", "ChangeLog"],
    ),
    "libtasn1-ch01.html": (["libtasn1 — GNU ASN.1 library", "(Abstract Syntax Notation One)"], ["Prev", "Next"]),
    "valgrind-nl-manual.html": (["# 12. Nulgrind: the minimal Valgrind tool", "--tool=nulgrind"], ["Prev", "Up <<"]),
}


@pytest.mark.parametrize("name", REAL)
def test_real_pages_keep_their_text_and_lose_their_menus(pages, name):
    text = read_markup(pages[name], name)
    kept, gone = REAL[name]
    for words in kept:
        assert words in text, words
    for words in gone:
        assert words not in text, words
    assert "<" not in text.replace("<stdio.h>", "").replace("<ffi.h>", "").replace("->", "").replace("<-", "")


def test_docbook_page_in_cp1252():
    text = read(DOCBOOK.encode("cp1252"))
    assert text == (
        "# Pump\n\n## Größe 0: the pump\n\nIts “seal” must face the inlet.\n\n```\nset pump on\n    wait 5\n```\n\n"
        "pressure\n:   4 bar\n\nLimits\n\n| part | torque |\n| --- | --- |\n| pump | 12 Nm |"
    )


# --- encodings ----------------------------------------------------------------------------------------------------------

META = '<html><head><meta http-equiv="Content-Type" content="text/html; charset={}"></head><body><p>{}</p></body></html>'


@pytest.mark.parametrize(
    ("declared", "codec", "words"),
    [
        ("iso-8859-1", "cp1252", "“Größe” €"),
        ("ISO-8859-15", "iso8859-15", "Œuvre €"),
        ("Shift_JIS", "cp932", "髙橋①"),
        ("gb2312", "gb18030", "镕基水泵"),
        ("euc-kr", "cp949", "펌프 설명서"),
        ("Big5", "big5", "水泵說明"),
        ("windows-1251", "cp1251", "Насос"),
        ("windows-1255", "cp1255", "משאבה"),
        ("koi8-r", "koi8-r", "Насос"),
        ("utf-16", "utf-8", "Größe"),  # what can be read byte by byte is not UTF-16
        ("no-such", "utf-8", "Größe"),
        ("hex", "utf-8", "Größe"),
        ("utf-7", "utf-8", "Größe"),
    ],
)
def test_declared_encodings_are_taken_as_browsers_take_them(declared, codec, words):
    assert read(META.format(declared, words).encode(codec)) == words


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_counts_more_than_what_is_declared(codec):
    assert read(META.format("iso-8859-1", "Größe").encode(codec)) == "Größe"


def test_meta_in_the_second_kilobyte_and_after_decoys():
    head = (
        "<!-- <meta charset=koi8-r> -->"
        + "<link rel=x href=y>" * 80
        + "<meta name=description content='charset=koi8-r'><meta charset=cp1251>"
    )
    assert len(head) > 1500
    assert read(f"<html><head>{head}</head><body>Насос</body></html>".encode("cp1251")) == "Насос"


def test_xhtml_with_an_encoding_declaration():
    page = '<?xml version="1.0" encoding="iso-8859-1"?>\n<html xmlns="http://www.w3.org/1999/xhtml"><head><script src="x"/><title/></head>'
    page += '<body><p><a id="x"/>Gr\xf6\xdfe&nbsp;&ndash; <b>4</b>&#160;bar</p></body></html>'
    assert read(page.encode("latin-1"), "x.xhtml") == "Größe – 4 bar"
    assert read(page.encode("latin-1"), "x.html") == "Größe – 4 bar"


@pytest.mark.parametrize(
    ("codec", "words"),
    [
        (
            "cp1251",
            "Насос крепится четырьмя винтами, уплотнение обращено ко входу, а давление не должно превышать четырёх бар.",
        ),
        (
            "koi8-r",
            "Насос крепится четырьмя винтами, уплотнение обращено ко входу, а давление не должно превышать четырёх бар.",
        ),
        ("cp1253", "Η αντλία στερεώνεται με τέσσερις βίδες και η φλάντζα είναι στραμμένη προς την είσοδο του νερού."),
        ("cp1252", "La pompe est fixée à l’aide de quatre vis, et le côté « entrée » reçoit l’étanchéité; où est-elle?"),
        ("cp1252", "La bomba se fija con cuatro tornillos. ¿Cuál es la presión máxima del año? El niño la leyó aquí."),
        ("cp1250", "Čerpadlo je upevněno čtyřmi šrouby a těsnění směřuje k přívodu, tlak nesmí přesáhnout čtyři bary."),
        ("cp1250", "Pompa jest przymocowana czterema śrubami, a uszczelka zwrócona jest ku wlotowi; żółć, gęś, ciśnienie."),
        ("cp1254", "Pompa dört vidayla sabitlenir ve contası girişe bakar; İlk basınç dört barı aşmamalıdır, ığşç."),
        ("cp949", "펌프는 나사 네 개로 고정하고 밀봉재는 입구를 향해야 합니다. 압력은 네 바를 넘지 않아야 합니다."),
        ("cp932", "ポンプは四本のねじで固定し、シールは入口に向けてください。圧力は四バールを超えないこと。"),
        ("gb18030", "水泵用四颗螺钉固定，密封面朝向入口，压力不得超过四巴。请先阅读使用说明。"),
    ],
)
def test_undeclared_bytes_are_guessed_by_their_text_not_their_markup(codec, words):
    page = f"<html><head><style>{'p { color: red } ' * 300}</style></head><body><p class='x'>{words}</p></body></html>"
    assert read(page.encode(codec)) == words


def test_bytes_that_are_no_text_are_not_guessed():
    with pytest.raises(InputError, match="no other encoding is declared or recognised; give its encoding"):
        read(b"<p>" + bytes(range(128, 256)) * 3 + b"</p>")


def test_a_stray_byte_does_not_spoil_a_page_declared_utf_8():
    assert read(META.format("utf-8", "Größe ist größer").encode("utf-8").replace(b"ist", b"i\xe9t")) == "Größe i\ufffdt größer"


def test_another_encoding_declared_utf_8_is_not_believed():
    words = "Größe, Übung, Maß und Füße über Äpfel für die Öffnung des Gefäßes"
    assert "\ufffd" not in read(META.format("utf-8", words).encode("cp1252"))


@pytest.mark.parametrize(
    ("encoding", "sentence"),
    [
        ("klingon", "'klingon' is not an encoding that Python knows"),
        ("hex", "'hex' is not an encoding"),
        ("", "'' is not an encoding"),
        ("a\0b", "is not an encoding"),
        ("utf-8", r"x\.html is not text in utf-8 at byte 5\.$"),
        ("ascii", "x.html is not text in ascii at byte 5.$"),
    ],
)
def test_a_wrong_encoding_gets_a_sentence(encoding, sentence):
    with pytest.raises(InputError, match=sentence):
        read("<p>Gr\xf6\xdfe</p>".encode("latin-1"), encoding=encoding)


def test_a_given_encoding_counts_more_than_what_is_declared():
    assert read(META.format("utf-8", "Насос").encode("cp1251"), encoding="cp1251") == "Насос"


def test_nul_bytes_get_a_sentence():
    with pytest.raises(InputError, match="it holds a NUL at character 4"):
        read(b"<p>a\0b</p>")
    assert read("<p>Größe</p>".encode("utf-16-le"), encoding="utf-16-le") == "Größe"


# --- what goes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "gone",
    [
        "<nav><a href=x>gone</a></nav>",
        '<div role="navigation">gone</div>',
        '<form role="search">gone <input name=q></form>',
        '<ul class="breadcrumb"><li>gone</li></ul>',
        '<div id="menu"><a href=x>gone</a></div>',
        '<div class="sidebar"><a href=x>gone</a> <a href=y>gone</a></div>',
        '<p><a rel="prev" href=x>gone</a> | <a rel="next" href=y>gone</a></p>',
        '<p>Next: <a href="x" accesskey="n">gone</a>, Up: <a href="y">gone</a></p>',
        "<table><tr><td>Previous</td><td>Next</td></tr></table>",
        "<footer>gone</footer>",
        '<div class="footer">gone, made by hand</div>',
        "<script>gone</script>",
        "<style>gone</style>",
        "<template>gone</template>",
        "<noscript>gone</noscript>",
        "<p hidden>gone</p>",
        '<p style="color: red; display : none">gone</p>',
        "<dialog>gone</dialog>",
        '<span aria-hidden="true">gone</span>',
        '<a href="#x">¶</a>',
        '<a href="#x">Skip to content</a>',
        "<select><option>gone</option></select>",
        "<button>gone</button>",
        "<svg><title>gone</title></svg>",
        "<!-- gone -->",
        '<div class="cookie-banner">gone</div>',
    ],
)
def test_what_is_not_the_page_goes(gone):
    text = "one sentence of the page, which is long enough to be most of what it holds and says it twice"
    for page in (f"{gone}<h1>Pump</h1><p>{text}</p>", f"<h1>Pump</h1><p>{text}</p>{gone}"):
        assert inside(page) == f"# Pump\n\n{text}"


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ('<p>see <a href="x">the next chapter</a>.</p>', "see the next chapter."),
        ("<h3><button>What is it?</button></h3><p>it</p>", "### What is it?\n\nit"),
        ('<p hidden="until-found">kept</p>', "kept"),
        ('<div aria-hidden="true"><p>kept</p></div>', "kept"),
        (
            "<header><h1>Pump</h1><p>by us</p></header><p>a text of many more words than that</p>",
            "# Pump\n\na text of many more words than that",
        ),
        ("<article><header><p>kept</p></header><p>more</p></article>", "kept\n\nmore"),
        ('<h2 id="editing-and-navigation">kept</h2><p>x</p>', "## kept\n\nx"),
        ('<div class="sidebar"><p>A box with text of its own.</p></div><p>x</p>', "A box with text of its own.\n\nx"),
        ('<p>File <span class="guimenu">kept</span> Next</p>', "File kept Next"),
        ("<details><summary>more</summary>kept</details>", "more\n\nkept"),
        (
            '<aside role="note"><p>See <a href="x">a long link to a page</a></p></aside><p>x</p>',
            "See a long link to a page\n\nx",
        ),
    ],
)
def test_what_looks_like_it_stays(page, text):
    assert inside(page) == text


def test_a_page_of_navigation_only_is_its_navigation():
    assert inside("<nav><ul><li><a href=a>Pumps</a></li><li><a href=b>Tanks</a></li></ul></nav>", "<title>Index</title>") == (
        "# Index\n\n- Pumps\n- Tanks"
    )


def test_one_main_element_is_the_page():
    long = "a sentence of the page that says what it is about. " * 3
    assert (
        inside(f"<div><h1>Pump</h1>aside of it</div><main><p>{long}</p></main><div>and more</div>")
        == f"# Pump\n\n{long.strip()}"
    )


# --- title --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "page", "text"),
    [
        ("Pump", "<p>x</p>", "# Pump\n\nx"),
        ("Pump", "<h1>PUMP <a href='#x'>¶</a></h1>", "# PUMP"),
        ("Pump &mdash; Manual 3", "<h1>Pump</h1>", "Manual 3\n\n# Pump"),
        ("Manual 3: Pump", "<h1>Pump</h1>", "Manual 3\n\n# Pump"),
        ("Pump (Manual 3)", "<h2>2.1 Pump</h2>", "Manual 3\n\n## 2.1 Pump"),
        ("Pump", "<h1>Tank</h1>", "# Pump\n\n# Tank"),
        ("Pump", "", "# Pump"),
        ("git-add(1)", "<h1>git-add(1) Manual Page</h1>", "# git-add(1) Manual Page"),
    ],
)
def test_the_title_is_kept_once(title, page, text):
    assert inside(page, f"<title>{title}</title>") == text


# --- blocks and lines ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<p>snake_case * 2 [x] &lt;b&gt; #1</p>", "snake_case * 2 [x] <b> #1"),
        ("<p>un<b>believ</b>able <i>it</i></p>", "unbelievable it"),
        ("<p>in&shy;for&#8203;ma<wbr>tion</p>", "information"),
        ("<p>می\u200cشود</p>", "می\u200cشود"),
        ("<p>one<br>two</p>three<div>four</div>five", "one\ntwo\n\nthree\n\nfour\n\nfive"),
        (
            "<section>a</section><section>b</section><address>c</address><figure>d<figcaption>e</figcaption></figure>",
            "a\n\nb\n\nc\n\nd\n\ne",
        ),
        ("a<div></div>b<hr>c", "a b\nc"),
        (
            "<p>10<sup>6</sup> m<sup>2</sup>, H<sub>2</sub>O, note<sup><a href=#n>1</a></sup>, 1<sup>st</sup></p>",
            "10^6 m^2, H2O, note[1], 1st",
        ),
        ('<p>left<img src=a alt="a pump">right<img src=b alt=""></p>', "left a pump right"),
        ("<p>she said <q>so</q></p>", 'she said "so"'),
        ("<my-card>a</my-card><my-card>b</my-card>", "a b"),
        ("<pre>a\n\tb\n\n\n    c   d\n</pre>", "```\na\n\tb\n\n\n    c   d\n```"),
        ("<pre>a<br>  b<div>c</div><div>d</div></pre>", "```\na\n  b\nc\nd\n```"),
        ("<pre>```\nx\n```</pre>", "````\n```\nx\n```\n````"),
        ("<pre><span class=lineno>1</span>a\n<span class=lineno>2</span>b</pre>", "```\na\nb\n```"),
        ("<ol start=3><li>a<li value=7>b<ul><li>c</ol>", "3. a\n7. b\n   - c"),
        ("<ol><li>a<pre>x\n  y</pre></ol>", "1. a\n\n   ```\n   x\n     y\n   ```"),
        ("<dl><dt>a</dt><dd>b</dd><dt>c</dt><dd><p>d</p><p>e</p></dd></dl>", "a\n:   b\n\nc\n:   d\n\n    e"),
        ("<p>水泵\n使用</p><p>רגל <b>שלום</b></p>", "水泵 使用\n\nרגל שלום"),
        ("<pre>a\x0cb\x1b[0m &#1;&#xD800;&#x110000;&#99999999;</pre>", "```\na b [0m \ufffd\ufffd\ufffd\ufffd\n```"),
        ("<p>4 &#150; 5 bar&#x85; &#65;</p>", "4 – 5 bar… A"),
        ("<blockquote><p>a</p></blockquote>b", "a\n\nb"),
        ("<p>&nosuch; &#x1F600; &#0; &copy;</p>", "&nosuch; \U0001f600 \ufffd ©"),
    ],
)
def test_words_and_lines_stay_as_they_are(page, text):
    assert inside(page) == text


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<table><tr><td>a<td>b<tr><td>c<td>d</table>", "| a | b |\n| --- | --- |\n| c | d |"),
        (
            "<table><caption>T</caption><colgroup><col></colgroup><thead><tr><th>a<th>b</thead><tfoot><tr><td>y<td>z</tfoot>"
            "<tbody><tr><td>c<td>d</tbody><tbody><tr><td>e<td>f</tbody></table>",
            "T\n\n| a | b |\n| --- | --- |\n| c | d |\n| e | f |\n| y | z |",
        ),
        ("<table><tr><th colspan=2>a<th>b<tr><td>c<td>d<td>e</table>", "| a | | b |\n| --- | --- | --- |\n| c | d | e |"),
        (
            "<table><tr><th>a<th>b<tr><td><p>c</p><p>d</p><td><ul><li>e<li>f</ul></table>",
            "| a | b |\n| --- | --- |\n| c d | - e - f |",
        ),
        ("<table><tr><td>menu<td><h1>T</h1><p>x</p></table>", "menu\n\n# T\n\nx"),
        (
            "<table><tr><td>a<td><table><tr><td>b<td>c<tr><td>d<td>e</table></table>",
            "a\n\n| b | c |\n| --- | --- |\n| d | e |",
        ),
        (
            "<table><tr><th>a<th>b<tr><td>x<td><table><tr><td>c<td>d</table></table>",
            "| a | b |\n| --- | --- |\n| x | c d |",
        ),
        ("<table class=highlighttable><tr><td class=linenos>1 2<td><pre>a\n  b</pre></table>", "```\na\n  b\n```"),
        ('<table role="presentation"><tr><td>a<td>b</table>', "a\n\nb"),
        ("<table><tr><td>a</table>", "a"),
        ("<table></table><p>x</p>", "x"),
        (
            "<table><tr columns=999999999><td number=7 colspan=²>a<td colspan=" + "9" * 5000 + ">b</table>",
            "| a | b |\n| --- | --- |",
        ),
        ('<p>a<b" c="d<e>f</b"></p>', "a"),
    ],
)
def test_tables_are_whole(page, text):
    found = inside(page)
    assert [" ".join(line.split()) if line.startswith("|") else line for line in found.split("\n")] == text.split("\n")


# --- bad pages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "sentence"),
    [
        (b"", "x.html is empty."),
        (b"  \n", "x.html is empty."),
        (b"<html></html>", "x.html holds no text."),
        (b"<html><body><script>x</script></body></html>", "x.html holds no text."),
        (b"<!-- x -->", "x.html holds no text."),
        (
            b"<html><frameset><frame src='a.html'><frame src=b.html><noframes>use frames</noframes></frameset></html>",
            "x.html holds no text but frames, which are pages of their own: a.html, b.html.",
        ),
        (b"<ul><li>" * 300 + b"x", "levels deep, which is too deep to read."),
        (b"<ul><li>" * 20000 + b"x", "levels deep, which is too deep to read."),
        (b"%PDF-1.7 x", "x.html is named HTML, but holds a PDF."),
    ],
)
def test_bad_pages_get_a_sentence(page, sentence):
    with pytest.raises(InputError) as error:
        read(page)
    assert str(error.value).endswith(sentence)
    assert "\n" not in str(error.value)


def test_wrappers_and_marks_do_not_count_as_depth():
    assert inside("<div><span>" * 900 + "x" + "</span></div>" * 900) == "x"
    assert inside("<font>" * 900 + "x<p>y</p>") == "x\n\ny"


def test_a_page_of_five_megabytes_is_whole():
    items = "".join(f"<li>word{number} {'is in a list of many ' * 20}</li>" for number in range(5000))
    cells = "".join(f"<tr><td>left{number}</td><td>right{number} {'x' * 400}</td></tr>" for number in range(5000))
    page = f"<ol>{items}</ol><table>{cells}</table><pre>{'x = 1' * 200_000}</pre>".encode()
    assert len(page) > 5_000_000
    lines = read(page).split("\n")
    assert ("5000. word4999 " + "is in a list of many " * 20).rstrip() in lines
    assert f"| left4999 | right4999 {'x' * 400} |" in lines
    assert "x = 1" * 200_000 in lines


def test_missing_packages_are_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "lxml", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'm0-reranker\[html\]'"):
        read("<p>x</p>")


def test_a_page_as_read_scores_as_its_plain_text_would(nano):
    """The markup is what makes the difference: with it, the same words score otherwise."""
    words = "The pump is fixed with four screws, and its seal faces the inlet."
    page = (
        f"<html><head><script>{'x = 1; ' * 30}</script></head><body><nav><a href=a>Prev</a></nav><p>{words}</p></body></html>"
    )
    query = "how is the pump fixed"
    plain, found, raw = nano.score([(query, words), (query, read(page)), (query, page)])
    assert found == plain
    assert raw != plain
