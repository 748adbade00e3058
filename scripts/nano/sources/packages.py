"""Packages of npm and Debian, fetched by name and unpacked once; nothing is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

NPM_PACKAGES = {
    "emoji": "emoji-datasource-google@16.0.0",
    "cldr": "cldr-annotations-full@48.2.0",
    "openmoji": "openmoji@17.0.0",
    "fluent": "@lobehub/fluent-emoji-flat@1.1.0",
}
RASTERIZER = "@resvg/resvg-js@2.6.2"
"""A tool: npm installs its program for this machine. Nothing of it goes into the material."""
LEFT_OUT = re.compile(r"img/google/sheets|black/svg")


def run(command: list[str], folder: Path, text: str | None = None) -> str:
    """What the command prints; ends the program with its last words if it fails."""
    if shutil.which(command[0]) is None:
        sys.exit(f"{command[0]} is needed to fetch the packages and is not on the PATH.")
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, input=text)
    if result.returncode:
        sys.exit(f"'{' '.join(command)[:200]}' failed:\n{result.stderr[-2000:]}")
    return result.stdout


def fetch(work: Path, debian: Iterable[str]) -> dict[str, Path]:
    """The folder of each npm package, of the rasterizer and of these Debian packages; what is there already is not fetched again."""
    folders = {}
    for name, package in NPM_PACKAGES.items():
        folders[name] = folder = work / name
        if not (folder / "package").exists():
            _unpack_npm(package, folder)
    folders["rasterizer"] = folder = work / "rasterizer"
    if not (folder / "node_modules").exists():
        folder.mkdir(parents=True, exist_ok=True)
        run(["npm", "install", "--no-audit", "--no-fund", "--prefix", ".", RASTERIZER], folder)
    for name in debian:
        folders[name] = folder = work / name
        if not (folder / "usr").exists():
            _unpack_debian(name, folder)
    return folders


def _unpack_npm(package: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    run(["npm", "pack", package], folder)
    partial = folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        members = [member for member in archive.getmembers() if not LEFT_OUT.search(member.name)]
        archive.extractall(partial, members=members, filter="data")
    (partial / "package").rename(folder / "package")
    partial.rmdir()


def _unpack_debian(name: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("*.deb")):
        run(["apt-get", "download", name], folder)
    partial = folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    run(["dpkg-deb", "-x", next(folder.glob("*.deb")).name, "partial"], folder)
    (partial / "usr").rename(folder / "usr")
    shutil.rmtree(partial)
