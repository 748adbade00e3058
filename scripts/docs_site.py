"""What `make docs` does beyond MkDocs: hooks that mkdocs.yml names.

Pages link to files of the repository that are no pages (the model card, the code). On the site a Markdown file becomes a page of its
own, and a link to any other file becomes its text. A page that would load anything from another address ends the build.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE_FOLDER = "repository"
"""Where files from outside docs/ are on the site."""
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s#]+)(#[^()\s]*)?\)")
EXTERNAL_LOAD = re.compile(
    r"<(?:link|script|img|iframe|source)\b[^>]*?\b(?:src|href)\s*=\s*[\"']?(?:https?:)?//[^\s\"'>]*", re.IGNORECASE
)


def outside_pages():
    """Markdown files of the repository that are not in docs/, by their path."""
    found = [*ROOT.glob("*.md"), *(ROOT / "weights" / "m0-nano").glob("*.md"), ROOT / "weights" / "README.md"]
    return {path.relative_to(ROOT).as_posix(): path for path in found}


def on_files(files, config):
    for name, path in outside_pages().items():
        files.append(File.generated(config, f"{OUTSIDE_FOLDER}/{name}", content=path.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown, page, config, files):
    here = page.file.src_uri
    inside = here.startswith(f"{OUTSIDE_FOLDER}/")
    original = here.removeprefix(f"{OUTSIDE_FOLDER}/") if inside else f"docs/{here}"

    def rewrite_link(match):
        shown, text, target, anchor = match.groups()
        if re.match(r"[a-z]+:", target):
            return match.group()
        target = posixpath.normpath(posixpath.join(posixpath.dirname(original), target))
        if target.startswith("docs/") and files.get_file_from_path(target.removeprefix("docs/")):
            place = target.removeprefix("docs/")
        elif target in outside_pages():
            place = f"{OUTSIDE_FOLDER}/{target}"
        elif target.startswith("docs/") and not (ROOT / target).exists():
            return match.group()  # for MkDocs to find
        else:
            return text
        return f"{shown}[{text}]({posixpath.relpath(place, posixpath.dirname(here) or '.')}{anchor or ''})"

    return LINK.sub(rewrite_link, markdown)


def on_post_page(output, page, config):
    check_external_loads(output, page.file.src_uri)
    return output


def on_post_template(output_content, template_name, config):
    check_external_loads(output_content, template_name)
    return output_content


def check_external_loads(html, name):
    """Raises PluginError where a page would load something from another address."""
    if found := EXTERNAL_LOAD.search(html):
        raise PluginError(f"{name} would load from outside: {found.group()}")
