"""DOCX, PPTX and ODT -> Markdown, by mammoth, markitdown and LibreOffice."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from m0.errors import InputError, MissingExtraError
from m0.inputs.markup.archives import open_archive
from m0.inputs.markup.html import html_to_markdown

SECONDS = 120.0
"""How long LibreOffice may take for one file."""
_CODE = ("Source Code", "Preformatted Text", "HTML Preformatted", "HTML Code", "Plain Text", "Macro Text", "Code", "macro")
_STYLES = "\n".join(
    ["p[style-name='Title'] => h1:fresh", *(f"p[style-name='{name}'] => pre:separator('\\n')" for name in _CODE)]
)
"""Styles that mammoth takes for plain paragraphs: a document's title, and code, whose blanks count."""
_PICTURE = re.compile(r"^!\[(.*)\]\((\w*)\.jpg\)$", re.MULTILINE)
_FILE = re.compile(r"\S+\.(png|jpe?g|gif|bmp|tiff?|svg|emf|wmf|webp)", re.IGNORECASE)
_SLIDE = re.compile(r"^<!-- Slide number: \d+ -->\n?", re.MULTILINE)


def read_docx(data: bytes, name: str) -> str:
    """Markdown, with tables, lists, notes and descriptions of pictures, changes accepted. Headers, footers, comments and fields are
    left out, which mammoth does not read. Raises InputError, one sentence; MissingExtraError."""
    try:
        import mammoth
    except ImportError:
        raise MissingExtraError("DOCX needs mammoth: pip install 'm0-reranker[office]'.") from None
    with open_archive(data, name):
        pass  # within the limits
    try:
        page = mammoth.convert_to_html(
            io.BytesIO(data),
            convert_image=mammoth.images.img_element(lambda image: {"src": ""}),
            style_map=_STYLES,
            include_embedded_style_map=False,
        ).value
    except Exception as error:  # mammoth's own, zipfile's, those of two XML parsers
        raise _damaged(name, error) from None
    return html_to_markdown(f"<html><body>{page}</body></html>", name, navigation=True)


def read_pptx(data: bytes, name: str) -> str:
    """Markdown, slide after slide, with tables, charts' numbers, descriptions of pictures and speakers' notes, hidden slides among
    them. Raises InputError, one sentence; MissingExtraError."""
    try:
        import pptx  # noqa: F401  markitdown imports without it
        from markitdown import StreamInfo
        from markitdown.converters import PptxConverter
    except ImportError:
        raise MissingExtraError("PPTX needs markitdown: pip install 'm0-reranker[office]'.") from None

    class Converter(PptxConverter):
        def _convert_chart_to_markdown(self, chart: object) -> str:
            """With a line end, or what follows joins its last row."""
            return f"{super()._convert_chart_to_markdown(chart)}\n"

    with open_archive(data, name):
        pass
    try:
        text = (
            Converter()
            .convert(io.BytesIO(data), StreamInfo(extension=".pptx"), escape_asterisks=False, escape_underscores=False)
            .markdown
        )
    except Exception as error:
        raise _damaged(name, error) from None
    text = _PICTURE.sub(_described, _SLIDE.sub("\n", text)).replace("\x0b", "\n")
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    if not text:
        raise InputError(f"{name} holds no text.")
    return text


def _described(found: re.Match[str]) -> str:
    """A picture's description; where it has none, there is the name of a file, or of the shape, such as "Picture 3"."""
    return "" if re.sub(r"\W", "", found[1]) == found[2] or _FILE.fullmatch(found[1]) else found[1]


def read_odt(data: bytes, name: str) -> str:
    """As LibreOffice saves it as DOCX. Raises InputError where LibreOffice is not installed, fails, or takes too long."""
    with open_archive(data, name) as archive:
        manifest = "META-INF/manifest.xml"
        if manifest in archive.namelist() and b"encryption-data" in archive.read(manifest):
            raise InputError(f"{name} is protected by a password; save it without one.")
    program = _libreoffice()
    if program is None:
        raise InputError(f"{name} is an OpenDocument text, for which LibreOffice must be installed (soffice was not found).")
    with tempfile.TemporaryDirectory(prefix="m0-", ignore_cleanup_errors=True) as folder:
        given = Path(folder, "document.odt")
        given.write_bytes(data)
        # A profile of its own, for a second LibreOffice with the same one hands its work to the first and ends.
        profile = Path(folder, "profile").as_uri()
        command = [
            program,
            f"-env:UserInstallation={profile}",
            "--headless",
            "--norestore",
            "--convert-to",
            "docx:MS Word 2007 XML",
        ]
        message = _run([*command, "--outdir", folder, str(given)], name)
        made = given.with_suffix(".docx")
        if not made.is_file():
            raise InputError(f"{name} cannot be read by LibreOffice{': ' + message if message else ''}.")
        return read_docx(made.read_bytes(), name)


def _libreoffice() -> str | None:
    found = shutil.which("soffice") or shutil.which("libreoffice")
    usual = Path("/Applications/LibreOffice.app/Contents/MacOS/soffice")
    return found or (str(usual) if usual.is_file() else None)


def _run(command: list[str], name: str) -> str:
    """-> the last line that it said beside its result."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
    except OSError as error:
        raise InputError(f"{name} cannot be read: {command[0]} does not start: {error.strerror}.") from None
    try:
        said, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise InputError(f"{name} cannot be read: LibreOffice took more than {SECONDS:.0f} seconds.") from None
    finally:
        if process.poll() is None:  # soffice starts another program, which is to end with it
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
            process.communicate()
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return " ".join(lines[-1].split()).rstrip(".") if lines else ""


def _damaged(name: str, error: Exception) -> InputError:
    if isinstance(error, RecursionError):
        return InputError(f"{name} has parts in parts, too deep to read.")
    return InputError(f"{name} is damaged: {' '.join(str(error).split()).rstrip('.') or type(error).__name__}.")
