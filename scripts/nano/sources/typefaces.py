"""Which typefaces of the Debian packages draw which scripts, and which two families training never sees."""

from __future__ import annotations

import os
from pathlib import Path

from fontTools.ttLib import TTFont
from PIL import ImageFont

LETTERS = {
    "latin": "ABCXYZabcxyzăâîșțğışçñøåäöüßłńśźżčďěňřšťůýžőűąęėįųūāēģīķļņ",
    "cyrillic": "АБВГДабвгдежзийклмнопрстуфхцчшщъыьэюяіїєґЄ",
    "greek": "ΑΒΓΔαβγδεζηθικλμνξοπρστυφχψωάέήίόύώς",
    "arabic": "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
    "hebrew": "אבגדהוזחטיכלמנסעפצקרשתםןץףך",
    "devanagari": "अआइईउकखगघचजटडतदनपबमयरलवशसहािी",
    "bengali": "অআইকখগঘচজটডতদনপবমযরলশসহািী",
    "thai": "กขคงจฉชซญดตถทธนบปผฝพฟภมยรลวสหอ",
}
"""A face draws a script if it has all of these."""
VIETNAMESE = "ạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹđơư"
SCRIPTS = list(LETTERS)
FACES = {
    "fonts-noto-core": {
        "Noto Sans": "NotoSans-Regular NotoSans-Bold NotoSans-Italic",
        "Noto Serif": "NotoSerif-Regular NotoSerif-Bold NotoSerif-Italic",
        "Noto Serif Display": "NotoSerifDisplay-Regular NotoSerifDisplay-Bold NotoSerifDisplay-Italic",
        "Noto Sans Display": "NotoSansDisplay-Regular NotoSansDisplay-Bold NotoSansDisplay-Italic",
    },
    "fonts-dejavu-core": {
        "DejaVu Sans": "DejaVuSans DejaVuSans-Bold",
        "DejaVu Serif": "DejaVuSerif DejaVuSerif-Bold",
        "DejaVu Sans Mono": "DejaVuSansMono DejaVuSansMono-Bold",
    },
    "fonts-liberation2": {
        "Liberation Sans": "LiberationSans-Regular LiberationSans-Bold LiberationSans-Italic LiberationSans-BoldItalic",
        "Liberation Serif": "LiberationSerif-Regular LiberationSerif-Bold LiberationSerif-Italic LiberationSerif-BoldItalic",
        "Liberation Mono": "LiberationMono-Regular LiberationMono-Bold",
    },
    "fonts-lato": {"Lato": "Lato-Regular Lato-Bold Lato-Italic"},
    "fonts-roboto-unhinted": {
        "Roboto": "Roboto-Regular Roboto-Bold Roboto-Italic Roboto-Light",
        "Roboto Condensed": "RobotoCondensed-Regular RobotoCondensed-Bold",
    },
    "fonts-ebgaramond": {"EB Garamond": "EBGaramond12-Regular EBGaramond12-Bold EBGaramond12-Italic"},
    "fonts-cantarell": {"Cantarell": "Cantarell-Regular Cantarell-Bold"},
    "fonts-open-sans": {"Open Sans": "OpenSans-Regular OpenSans-Bold"},
    "fonts-linuxlibertine": {"Linux Libertine": "LinLibertine_R LinLibertine_RB"},
    "fonts-anonymous-pro": {"Anonymous Pro": "Anonymous_Pro Anonymous_Pro_B"},
    "fonts-cmu": {"Computer Modern": "cmunrm cmunbx cmunti"},
    "fonts-comfortaa": {"Comfortaa": "Comfortaa-Regular Comfortaa-Bold"},
    "fonts-crosextra-caladea": {"Caladea": "Caladea-Regular Caladea-Bold Caladea-Italic"},
    "fonts-crosextra-carlito": {"Carlito": "Carlito-Regular Carlito-Bold Carlito-Italic"},
    "fonts-firacode": {"Fira Code": "FiraCode-Regular FiraCode-Bold"},
    "fonts-gfs-artemisia": {"GFS Artemisia": "GFSArtemisia GFSArtemisiaBold"},
    "fonts-gfs-didot": {"GFS Didot": "GFSDidot GFSDidotBold GFSDidotItalic"},
    "fonts-gfs-neohellenic": {"GFS Neohellenic": "GFSNeohellenic GFSNeohellenicBold"},
    "fonts-hack": {"Hack": "Hack-Regular Hack-Bold"},
    "fonts-inter": {"Inter": "Inter-Regular Inter-Bold Inter-Italic"},
    "fonts-jetbrains-mono": {"JetBrains Mono": "JetBrainsMono-Regular JetBrainsMono-Bold"},
    "fonts-junicode": {"Junicode": "JunicodeTwoBeta-Regular JunicodeTwoBeta-Bold"},
    "fonts-jura": {"Jura": "Jura-Regular Jura-Bold"},
    "fonts-league-spartan": {"League Spartan": "LeagueSpartan-Regular LeagueSpartan-Bold"},
    "fonts-play": {"Play": "Play-Regular Play-Bold"},
    "fonts-quicksand": {"Quicksand": "Quicksand-Regular Quicksand-Bold"},
    "fonts-sil-andika": {"Andika": "Andika-Regular Andika-Bold"},
    "fonts-sil-charis": {"Charis SIL": "CharisSIL-Regular CharisSIL-Bold CharisSIL-Italic"},
    "fonts-sil-gentiumplus": {"Gentium Plus": "GentiumPlus-Regular GentiumPlus-Bold GentiumPlus-Italic"},
    "fonts-texgyre": {
        "TeX Gyre Adventor": "texgyreadventor-regular texgyreadventor-bold",
        "TeX Gyre Bonum": "texgyrebonum-regular texgyrebonum-bold",
        "TeX Gyre Cursor": "texgyrecursor-regular texgyrecursor-bold",
        "TeX Gyre Heros Condensed": "texgyreheroscn-regular texgyreheroscn-bold",
        "TeX Gyre Pagella": "texgyrepagella-regular texgyrepagella-bold texgyrepagella-italic",
        "TeX Gyre Schola": "texgyreschola-regular texgyreschola-bold",
    },
    "fonts-tuffy": {"Tuffy": "Tuffy Tuffy_Bold"},
    "fonts-vollkorn": {"Vollkorn": "Vollkorn-Regular Vollkorn-Bold Vollkorn-Italic"},
}
"""Of each package: families that draw Latin, Cyrillic or Greek, and the names of their files without the endings (_ is a blank)."""
OTHER_SCRIPTS = {
    "fonts-noto-core": {
        f"{kind} {script}": f"{kind.replace(' ', '')}{script}-Regular {kind.replace(' ', '')}{script}-Bold"
        for kind, scripts in {
            "Noto Sans": "Arabic Hebrew Devanagari Bengali Thai",
            "Noto Serif": "Hebrew Devanagari Bengali Thai",
            "Noto Naskh": "Arabic",
            "Noto Kufi": "Arabic",
            "Noto Looped": "Thai",
        }.items()
        for script in scripts.split()
    },
    "fonts-hosny-amiri": {"Amiri": "Amiri-Regular Amiri-Bold"},
    "fonts-lohit-beng-bengali": {"Lohit Bengali": "Lohit-Bengali"},
    "fonts-lohit-deva": {"Lohit Devanagari": "Lohit-Devanagari"},
}
"""Families of one script each; the Latin letters that some have are another family's."""
CJK_PACKAGE = "fonts-noto-cjk"
CJK = {
    "Noto Sans CJK": "NotoSansCJK-Regular NotoSansCJK-Bold",
    "Noto Serif CJK": "NotoSerifCJK-Regular NotoSerifCJK-Bold",
}
CJK_INDICES = range(4)
"""Of the collections: Japanese, Korean, Chinese simplified and traditional. Those after them are monospaced."""
HELD_OUT = ("Open Sans", "Linux Libertine")
LICENCES = {
    "fonts-dejavu-core": "Bitstream-Vera",
    "fonts-hack": "MIT AND Bitstream-Vera",
    "fonts-jetbrains-mono": "Apache-2.0",
    "fonts-open-sans": "Apache-2.0",
    "fonts-roboto-unhinted": "Apache-2.0",
    "fonts-texgyre": "GUST-Font-License",
    "fonts-tuffy": "Public-Domain",
}
"""Of the packages' typefaces by their debian/copyright; those of all others are under the OFL 1.1."""
PACKAGES = [*dict.fromkeys([*FACES, CJK_PACKAGE, *OTHER_SCRIPTS])]


def list_faces(folders: dict[str, Path], out: Path) -> list[dict]:
    """A row for each face: file relative to `out`, index in it, family, style, scripts, licence, whether it is held out.

    A face is listed with the scripts that it has every letter of; one that has none of its scripts whole is left out.
    """
    rows = []
    for package, families in FACES.items():
        for family, names in families.items():
            rows += [row for file in _files(folders[package], names) if (row := _row(file, out, package, family, SCRIPTS))]
    others = [script for script in SCRIPTS if script not in ("latin", "cyrillic", "greek")]
    for package, families in OTHER_SCRIPTS.items():
        for family, names in families.items():
            rows += [row for file in _files(folders[package], names) if (row := _row(file, out, package, family, others))]
    for family, names in CJK.items():
        for file in _files(folders[CJK_PACKAGE], names):
            row = _described(file, out, CJK_PACKAGE, family) | {"scripts": ["cjk"]}
            rows += [row | {"index": index} for index in CJK_INDICES]
    return rows


def _files(folder: Path, names: str) -> list[Path]:
    """Each named file once, by preference as TrueType."""
    found = []
    for name in names.split():
        name = name.replace("_", " ") if name.startswith("Anonymous") else name
        files = sorted(folder.rglob(f"{name}.[ot]t[fc]"), key=lambda file: (file.suffix != ".ttf", file))
        if not files:
            raise FileNotFoundError(f"{folder.name} has no typeface '{name}'.")
        found.append(files[0])
    return found


def _row(file: Path, out: Path, package: str, family: str, scripts: list[str]) -> dict | None:
    with TTFont(file, lazy=True) as font:
        letters = font.getBestCmap()
    pen = ImageFont.truetype(str(file), 24)

    def draws(letter: str) -> bool:
        return ord(letter) in letters and pen.getmask(letter).getbbox() is not None  # Play has an empty final sigma

    drawn = [script for script in scripts if all(map(draws, LETTERS[script]))]
    if not drawn:
        return None
    row = _described(file, out, package, family) | {"scripts": drawn}
    vietnamese = "latin" in drawn and all(ord(letter) in letters for letter in VIETNAMESE)
    return row | ({"vietnamese": True} if vietnamese else {})


def _described(file: Path, out: Path, package: str, family: str) -> dict:
    return {
        "file": os.path.relpath(file, out),
        "index": 0,
        "family": family,
        "style": style_of(file.stem),
        "held_out": family in HELD_OUT,
        "licence": LICENCES.get(package, "OFL-1.1"),
    }


def style_of(name: str) -> str:
    """One of "regular", "bold", "italic", "bold italic" or "light", and "mono" after it, by the name of the file."""
    ending = name.lower().replace("semicondensed", "")
    bold = "bold" in ending or ending.endswith(("_rb", " b", "cmunbx"))
    italic = "italic" in ending or ending.endswith("cmunti")
    style = " ".join(word for word, there in (("bold", bold), ("italic", italic)) if there)
    style = style or ("light" if ending.endswith("light") else "regular")
    return style + (" mono" if any(word in ending for word in ("mono", "firacode", "cursor", "hack", "anonymous")) else "")
