"""Makes office.tar.xz beside it: `python make_samples.py` with pandoc and LibreOffice installed.

Ten texts, each written by pandoc, and by LibreOffice from pandoc's file. The even ones are kept as pandoc wrote them, the odd ones as
LibreOffice did; ODT is LibreOffice's throughout, EPUB is pandoc's.
"""

from __future__ import annotations

import subprocess
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PIECES = {
    "pump": ("Pump 4711", "The pump is fixed with four screws, and its seal faces the inlet.", "pressure", "4 bar"),
    "umlauts": ("Größe der Bögen", "Die Bögen sind größer, als das Maß es zuläßt; naïve Übung hilft.", "Länge", "drei Fuß"),
    "japanese": ("ポンプの取扱説明書", "ポンプは四本のねじで固定し、シールは入口に向けてください。", "圧力", "四バール"),
    "chinese": ("水泵使用说明", "水泵用四颗螺钉固定，密封面朝向入口。", "压力", "四巴"),
    "persian": ("راهنمای پمپ", "پمپ با چهار پیچ محکم می‌شود و آب‌بند رو به ورودی است.", "فشار", "چهار بار"),
    "hebrew": ("מדריך למשאבה", "המשאבה מחוברת בארבעה ברגים, והאטם פונה אל הכניסה.", "לחץ", "ארבעה בר"),
    "russian": (
        "Руководство по насосу",
        "Насос крепится четырьмя винтами, уплотнение обращено ко входу.",
        "давление",
        "четыре бара",
    ),
    "code": ("Setting snake_case names", "The variable max_image_pixels * 2 is written as it is.", "max_pixels", "a_b_c * 2"),
    "greek": ("Εγχειρίδιο αντλίας", "Η αντλία στερεώνεται με τέσσερις βίδες.", "πίεση", "τέσσερα μπαρ"),
    "french": ("L’huile à l’été", "L’œuvre coûte 12 €, et le garçon l’a déjà reçue.", "durée", "dix années"),
}
TEXT = """---
title: {title}
---

# {title}

{sentence}[^1]

## {term}

| part | {term} |
|------|--------|
| seal | {value} |
| cell_b | 12 Nm |

- first {term}
    - inner item
- second item

1. step one
2. step two

```
set {ascii} on
    wait 5
```

A [link to {term}](https://example.org/x) and a **bold** word.

![A red square](red.png)

[^1]: A note on {term}.
"""
SLIDES = """# {title}

{sentence}

- first {term}
- second item

::: notes
Notes on {term}.
:::

# {term}

| part | {term} |
|------|--------|
| seal | {value} |
| cell_b | 12 Nm |
"""


def run(*command: str, folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def office(folder: Path, file: str, kind: str, to: str) -> None:
    """By LibreOffice, into the folder `to`."""
    profile = f"-env:UserInstallation={(folder / 'profile').as_uri()}"
    run("soffice", profile, "--headless", "--convert-to", kind, "--outdir", to, file, folder=folder)


def main() -> None:
    from PIL import Image

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made: dict[str, Path] = {}
        Image.new("RGB", (8, 8), "red").save(folder / "red.png")
        for number, (name, (title, sentence, term, value)) in enumerate(PIECES.items()):
            words = {"title": title, "sentence": sentence, "term": term, "value": value, "ascii": name}
            (folder / f"{name}.md").write_text(TEXT.format(**words), encoding="utf-8")
            (folder / "slides.md").write_text(SLIDES.format(**words), encoding="utf-8")
            for kind in ("docx", "epub"):
                run("pandoc", f"{name}.md", "-o", f"{name}.{kind}", folder=folder)
            run("pandoc", "slides.md", "-o", f"{name}.pptx", folder=folder)
            office(folder, f"{name}.docx", "odt", "odt")
            if number % 2:
                office(folder, f"{name}.docx", "docx", "office")
                office(folder, f"{name}.pptx", "pptx", "office")
            for kind in ("docx", "pptx", "epub", "odt"):
                choices = [folder / place / f"{name}.{kind}" for place in ("office", "odt", ".")]
                made[f"{name}.{kind}"] = next(path for path in choices if path.exists())
        with tarfile.open(HERE / "office.tar.xz", "w:xz", preset=9) as archive:
            for name in sorted(made, key=lambda name: (name.rpartition(".")[2], name)):
                archive.add(made[name], name)


if __name__ == "__main__":
    main()
