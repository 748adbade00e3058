"""Explanations in Chromium: a page is laid into a frame of some width, used by a script, and pictured."""

import json
import os
import re
import shutil
import subprocess
from html import unescape

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
]
SCHEMES = {"dark": 0, "light": 1}
STEPS = """
const frame = document.querySelector('iframe'), wait = ms => new Promise(done => setTimeout(done, ms)), errors = [];
frame.addEventListener('load', async () => { const result = {}, view = frame.contentWindow, page = frame.contentDocument;
  const one = what => page.querySelector(what), all = what => [...page.querySelectorAll(what)];
  const key = (name, on) => (on || page.activeElement).dispatchEvent(new view.KeyboardEvent('keydown', { key: name, bubbles: true, cancelable: true }));
  const point = (on, x, y) => on.dispatchEvent(new view.PointerEvent('pointermove', { clientX: x, clientY: y, bubbles: true }));
  const middle = on => { const box = on.getBoundingClientRect(); return [box.left + box.width / 2, box.top + box.height / 2]; };
  const tip = () => one('.tip').hidden ? null : one('.tip').textContent;
  try { STEPS_HERE } catch (error) { result.error = String(error && error.stack || error); }
  if (view.errors.length) result.error = view.errors.join('; ');
  const told = document.createElement('pre'); told.id = 'told'; told.textContent = JSON.stringify(result); document.body.append(told); });
frame.srcdoc = HTML_HERE;
"""
CATCH = "<head><script>window.errors = []; window.addEventListener('error', e => window.errors.push(e.message));</script>"


def browse(folder, html, steps="", width=1200, height=900, scheme="light", picture=None):
    """What the steps, JavaScript that fills `result`, have found; with `picture` a PNG of what is seen then is written there."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed, so that nothing was tried in a browser.")
    shown = json.dumps(html.replace("<head>", CATCH, 1)).replace("<", "\\u003c")
    script = STEPS.replace("STEPS_HERE", steps).replace("HTML_HERE", shown)
    frame = f'<iframe style="border:0;display:block;width:{width}px;height:{height}px"></iframe>'
    (folder / "frame.html").write_text(
        f'<!doctype html><meta charset="utf-8"><body style="margin:0">{frame}<script>{script}</script>', encoding="utf-8"
    )
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={max(width, 500)},{height}"]
    command += [f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}", "--virtual-time-budget=8000"]
    address = (folder / "frame.html").as_uri()
    environment = {**os.environ, "HOME": str(folder)}
    if picture is not None:
        subprocess.run(
            [*command, f"--screenshot={picture}", address], check=True, capture_output=True, timeout=120, env=environment
        )
        return {}
    done = subprocess.run([*command, "--dump-dom", address], check=True, capture_output=True, timeout=120, env=environment)
    told = re.search(r'<pre id="told">(.*?)</pre>', done.stdout.decode("utf-8"), re.DOTALL)
    assert told, done.stdout[-2000:]
    result = json.loads(unescape(told[1]))
    assert "error" not in result, result["error"]
    return result
