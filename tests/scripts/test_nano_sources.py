"""The material of m0-nano: what is taken out of packages, and what is held out."""

import json
import shutil
import sys
from pathlib import Path

import pytest

matplotlib = pytest.importorskip("matplotlib")
pytest.importorskip("fontTools")
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from nano.build_data import describe, write
from nano.sources import manuals, typefaces
from nano.sources.emoji import code_of
from nano.sources.html import PageParser, SectionParser, parse_page
from nano.sources.mallard import read_help
from nano.sources.splitting import held_out, language_code

LONG = "A sentence of the manual that is long enough to be asked for. " * 4
GERMAN = "Ein Satz des Handbuchs, der lang genug ist, um nach ihm zu fragen. " * 4


def test_a_page_is_split_at_headings_with_anchors(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        '<html lang="de"><body><div class="menu"><h1 id="no">Menu</h1></div><div id="content"><h1 id="first">1.2. First</h1><p>One'
        '<br>two.</p><div class="toc"><div>left out</div></div><h3>Note</h3><p>Three.</p><div id="around"><h2>Second¶</h2>'
        '<p>Four <a href="#">linked</a>.</p></div><h2>Third<a id="link">#</a></h2><pre>five</pre></div></body></html>'
    )
    parser = PageParser("content", frozenset(("toc",)))
    assert parse_page(page, parser) == {
        "first": ("First", ["Onetwo.", "Note", "Three."], []),
        "around": ("Second", ["Four linked."], []),
        "link": ("Third", ["five"], []),
    }
    assert parser.language == "de"


def test_a_page_in_the_charset_that_it_names(tmp_path):
    page = tmp_path / "page.html"
    page.write_bytes('<meta content="text/html; charset=EUC-KR"><h2 id="a">지시어</h2><p>한국어</p>'.encode("euc-kr"))
    assert parse_page(page, PageParser()) == {"a": ("지시어", ["한국어"], [])}
    page.write_bytes("<h2 id='a'>지시어</h2>".encode("euc-kr"))
    with pytest.raises(UnicodeDecodeError):
        parse_page(page, PageParser())


def test_the_handbooks_pages(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        '<h2 class="title"><a id="sect.x"></a>6.2. Name</h2><p>Text.</p><img src="images/inst1.png"><div class="docnav">on</div>'
    )
    assert parse_page(page, SectionParser()) == {"sect.x": ("Name", ["Text."], ["images/inst1.png"])}


def mallard(title, text, section):
    return (
        f'<page xmlns="http://projectmallard.org/1.0/" id="p"><info><credit><p>nobody</p></credit></info><title>{title}</title>'
        f"<p>{text}</p><section id='s'><title>{section}</title><p>{text} again</p></section></page>"
    )


def test_help_in_several_languages(tmp_path):
    for language, page in {
        "C": mallard("Sound", LONG, "Louder"),
        "de": mallard("Klang", GERMAN, "Lauter"),
        "fr": mallard("Son", LONG, "Plus fort"),  # not translated but for its headings
        "pt_BR": mallard("Som", "Uma frase do manual que basta para perguntar por ela. " * 4, "Mais alto"),
        "sr@latin": mallard("Zvuk", "Jedna", "Glasnije"),
    }.items():
        folder = tmp_path / "usr" / "share" / "help" / language / "app"
        folder.mkdir(parents=True)
        (folder / "sound.page").write_text(page, encoding="utf-8")
    found = read_help(tmp_path)
    assert set(found) == {"gnome/app/sound", "gnome/app/sound#s"}
    assert found["gnome/app/sound"]["de"] == ("Klang", [GERMAN.strip()])
    rows = manuals.translated_rows(found, "gnome", "CC-BY-SA-3.0")
    assert {row["language"] for row in rows} == {"en", "de", "pt"}
    assert all(row["held_out"] == held_out("section", row["id"]) for row in rows)
    assert {row["heading"] for row in rows if row["language"] == "de"} == {"Klang", "Lauter"}
    assert read_help(tmp_path, languages=("C",))["gnome/app/sound"].keys() == {"en"}
    assert not read_help(tmp_path, documents=("other",))


def test_what_is_left_in_english():
    assert manuals.is_english_still(["Ein Satz.", LONG], [LONG])
    assert manuals.is_english_still(["設定を開きます。", LONG], [])
    assert not manuals.is_english_still([GERMAN, "The End"], [LONG])


def test_repetitions_and_headings_of_many_sections_are_left_out():
    def row(key, heading, text, language="en"):
        return manuals.make_row(key, "python", language, heading, text + LONG, "PSF-2.0")

    many = [row(f"m{i}", "Description", str(i)) for i in range(6)]
    others = [row(f"o{i}", f"Heading {i}", f"{i} ") for i in range(9)]
    assert manuals.without_repetitions([*many, *others, row("again", "Another", "0 ")]) == others
    assert manuals.without_repetitions([*others, row("few", "Peu", "x", "fr")]) == others
    assert manuals.make_row("short", "python", "en", "A", "too short", "PSF-2.0") is None
    assert manuals.make_row("short", "kicad", "ja", "A", "字" * 60, "PSF-2.0")


def test_sections_of_translations_are_joined_by_their_order(tmp_path):
    texts = {
        "en": ["<h2 id='a'>One</h2><p>x</p>", "<h2 id='b'>Two</h2>"],
        "de": ["<h2 id='ä'>Eins</h2><p>y</p>", "<h2 id='z'>Zwei</h2>"],
    }
    texts["fr"] = texts["de"][:1]
    folders = {}
    for package in manuals.KICAD:
        folders[package] = tmp_path / package
        folders[package].mkdir()
        if parts := texts.get(package.rpartition("-")[2]):
            (folders[package] / "tool.html").write_text(f"<div id='content'>{''.join(parts)}</div>", encoding="utf-8")
    found = manuals.kicad(folders)
    assert found == {
        "kicad/tool#a": {"de": ("Eins", ["y"]), "en": ("One", ["x"])},
        "kicad/tool#b": {"de": ("Zwei", []), "en": ("Two", [])},
    }


def test_every_package_of_texts_is_free_to_build_on():
    licences = {*manuals.GNOME.values(), *manuals.GNOME_DEVEL.values(), *(licence for _, licence in manuals.ENGLISH.values())}
    assert licences <= {"CC-BY-SA-3.0", "CC-BY-SA-4.0", "PSF-2.0", "PostgreSQL", "Public-Domain", "MIT"}
    names = " ".join([*manuals.PACKAGES, *typefaces.PACKAGES])
    for never in ("debian-reference", "developers-reference", "maint-guide", "debian-faq"):
        assert never not in names
    readme = (Path(__file__).parents[2] / "scripts" / "nano" / "README.md").read_text(encoding="utf-8")
    for package in [*manuals.PACKAGES, *typefaces.PACKAGES]:
        kind = "libreoffice-help-" if package.startswith("libreoffice-help-") else package
        assert ("kicad-doc-" if package.startswith("kicad-doc-") else kind) in readme, package


def test_a_face_is_listed_with_the_scripts_that_it_draws(tmp_path, monkeypatch):
    (tmp_path / "packages").mkdir()
    shutil.copy(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf"), tmp_path / "packages")
    shutil.copy(Path(matplotlib.get_data_path(), "fonts", "ttf", "cmr10.ttf"), tmp_path / "packages")
    monkeypatch.setattr(typefaces, "FACES", {"fonts-dejavu-core": {"DejaVu Sans": "DejaVuSans-Bold", "CM": "cmr10"}})
    monkeypatch.setattr(typefaces, "OTHER_SCRIPTS", {})
    monkeypatch.setattr(typefaces, "CJK", {})
    folders = {"fonts-dejavu-core": tmp_path / "packages"}
    [row] = typefaces.list_faces(folders, tmp_path)  # the other has no accents
    assert {"latin", "cyrillic", "greek"} <= set(row["scripts"])
    assert "thai" not in row["scripts"]
    assert (row["file"], row["style"], row["vietnamese"]) == ("packages/DejaVuSans-Bold.ttf", "bold", True)
    monkeypatch.setattr(typefaces, "FACES", {"fonts-dejavu-core": {"DejaVu Sans": "Absent"}})
    with pytest.raises(FileNotFoundError, match="Absent"):
        typefaces.list_faces(folders, tmp_path)


@pytest.mark.parametrize(
    ("name", "style"),
    [
        ("NotoSans-Regular", "regular"),
        ("LiberationMono-Bold", "bold mono"),
        ("LiberationSerif-BoldItalic", "bold italic"),
        ("LinLibertine_RB", "bold"),
        ("cmunti", "italic"),
        ("JunicodeTwoBeta-Regular", "regular"),
        ("Anonymous Pro B", "bold mono"),
    ],
)
def test_styles(name, style):
    assert typefaces.style_of(name) == style


def test_codes():
    assert code_of("0023-FE0F-20E3") == code_of("23-20e3") == "0023-20e3"
    assert [language_code(name) for name in ("zh_CN", "zh_TW", "pt-BR", "nb-NO", "C")] == ["zh", "zh-Hant", "pt", "no", "en"]


def test_a_file_is_written_whole_and_described(tmp_path):
    rows = [{"id": "a", "language": "de", "held_out": True}, {"id": "b\u00e4", "language": "de", "held_out": False}]
    write(tmp_path / "sections.jsonl", rows)
    assert [json.loads(line) for line in (tmp_path / "sections.jsonl").read_text(encoding="utf-8").splitlines()] == rows
    assert [path.name for path in tmp_path.iterdir()] == ["sections.jsonl"]
    assert describe("sections", rows) == "sections: 2 rows, 1 held out wholly or in part\n  by language: de 2"
