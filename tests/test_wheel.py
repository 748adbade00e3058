"""The built wheel carries m0-nano and finds it, far from any checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent

USE = """
from m0 import Reranker
reranker = Reranker.from_pretrained("m0-nano")
import m0, m0.checkpoints.hub
print(m0.__file__)
print(m0.checkpoints.hub.locate("m0-nano"))
print(len(reranker.rank("compass", ["a", "b"])))
"""


def test_the_wheel_ranks_with_m0_nano(tmp_path):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        assert {"m0/explain/page.css", "m0/explain/page.js"} <= set(archive.namelist())
    code = f"import sys; sys.path.insert(0, {str(site)!r})\n{USE}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    package, weights, count = result.stdout.split()
    assert package.startswith(str(site))
    assert weights.startswith(str(site))
    assert count == "2"
    metadata = next(site.glob("*.dist-info/METADATA")).read_text()
    required = {
        line.split(":")[1].split(">=")[0].strip()
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist") and "extra" not in line
    }
    assert required == {"torch", "safetensors", "tokenizers", "pillow", "numpy", "einops"}
