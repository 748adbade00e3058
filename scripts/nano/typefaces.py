"""Which typefaces of the Debian packages draw which scripts, and which two families training never sees."""

from __future__ import annotations

from pathlib import Path

from fontTools.ttLib import TTFont

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
SCRIPTS_OF_THEIR_OWN = ("Arabic", "Hebrew", "Devanagari", "Bengali", "Thai")
"""Noto has a file for each of these, whose Latin letters are those of Noto Sans and Noto Serif."""
FAMILIES = [
    ("fonts-noto-core", "Noto Sans", ["NotoSans-Regular", "NotoSans-Bold", "NotoSans-Italic", "NotoSans-SemiCondensed"]),
    ("fonts-noto-core", "Noto Serif", ["NotoSerif-Regular", "NotoSerif-Bold", "NotoSerif-Italic"]),
    ("fonts-noto-core", "Noto Sans Mono", ["NotoSansMono-Regular", "NotoSansMono-Bold"]),
    ("fonts-noto-core", "Noto Sans Display", ["NotoSansDisplay-Regular", "NotoSansDisplay-Bold", "NotoSansDisplay-Italic"]),
    *(
        ("fonts-noto-core", f"{kind}{script}", [f"{kind}{script}-Regular", f"{kind}{script}-Bold"])
        for script in SCRIPTS_OF_THEIR_OWN
        for kind in ("NotoSans", "NotoSerif", "NotoNaskh", "NotoKufi")
    ),
    ("fonts-dejavu-core", "DejaVu", ["*"]),
    ("fonts-liberation2", "Liberation", ["*"]),
    ("fonts-lato", "Lato", ["Lato-Regular", "Lato-Bold", "Lato-Italic"]),
    ("fonts-roboto-unhinted", "Roboto", ["Roboto-Regular", "Roboto-Bold"]),
    ("fonts-roboto-unhinted", "Roboto Condensed", ["RobotoCondensed-Regular"]),
    ("fonts-ebgaramond", "EB Garamond", ["EBGaramond12-Regular", "EBGaramond12-Bold"]),
    ("fonts-cantarell", "Cantarell", ["*"]),
    ("fonts-open-sans", "Open Sans", ["OpenSans-Regular", "OpenSans-Bold"]),
    ("fonts-linuxlibertine", "Linux Libertine", ["LinLibertine_R", "LinLibertine_RB"]),
]
"""Package, family, names of files without their endings."""
HELD_OUT = ("Open Sans", "Linux Libertine")
CJK = ("NotoSansCJK-Regular", "NotoSerifCJK-Regular", "NotoSansCJK-Bold")
PACKAGES = ["fonts-noto-cjk", *dict.fromkeys(package for package, _, _ in FAMILIES)]


def list_faces(folders: dict[str, Path], out: Path) -> list[dict]:
    """A row for each face: file relative to `out`, index in it, family, scripts, whether it is held out."""
    rows = []
    for package, family, names in FAMILIES:
        for name in names:
            for file in sorted(folders[package].rglob(f"{name}.[ot]tf")):
                letters = TTFont(file, lazy=True).getBestCmap()
                scripts = [script for script, some in LETTERS.items() if all(ord(letter) in letters for letter in some)]
                if family.endswith(SCRIPTS_OF_THEIR_OWN):
                    scripts = [script for script in scripts if script not in ("latin", "cyrillic", "greek")]
                if scripts:
                    vietnamese = all(ord(letter) in letters for letter in VIETNAMESE)
                    rows.append(_row(file, out, family, scripts, family in HELD_OUT) | {"vietnamese": vietnamese})
    for name in CJK:
        for file in sorted(folders["fonts-noto-cjk"].rglob(f"{name}.ttc")):
            rows += [_row(file, out, name, ["cjk"], False) | {"index": index} for index in range(4)]
    return rows


def _row(file: Path, out: Path, family: str, scripts: list[str], held_out: bool) -> dict:
    return {
        "file": str(file.relative_to(out)),
        "index": 0,
        "family": family,
        "style": file.stem,
        "scripts": scripts,
        "held_out": held_out,
    }
