"""Seconds and memory of reading files of records, each in a process of its own: python scripts/bench/records.py 10000 100000

The table goes into docs/guides/records.md. Memory is the peak above what importing takes; Linux only.
"""

import csv
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

WORDS = "the installer writes a system image to disk and a needle points north while the mail server delivers letters".split()
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
READ = """
import sys, time
from m0.inputs.records import read_records
if sys.argv[1].endswith("parquet"):
    import pyarrow.parquet
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
before, begun = peak(), time.perf_counter()
count = sum(1 for document in read_records(sys.argv[1]))
print(f"{count:,} | {time.perf_counter() - begun:.1f} | {max(0, peak() - before):.0f} | {before:.0f} |")
"""


def rows(count: int) -> Iterator[dict[str, object]]:
    """BEIR's fields and one more, about 700 characters each."""
    chosen = random.Random(0)
    for number in range(count):
        title, text = (" ".join(chosen.choices(WORDS, k=words)) for words in (4, 100))
        yield {"_id": f"d{number}", "title": title, "text": text, "year": 1990 + number % 30}


def write(folder: Path, count: int) -> None:
    """One file of each kind; the Parquet file is a single row group, which is the hardest to stream."""
    with open(folder / "a.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(count))
    with open(folder / "a.json", "w", encoding="utf-8") as file:
        json.dump(list(rows(count)), file)
    with open(folder / "a.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, next(rows(1)))
        writer.writeheader()
        writer.writerows(rows(count))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows(count))), folder / "a.parquet", row_group_size=count)


def main() -> None:
    print("| file | MiB | records | seconds | MiB of memory for reading | MiB before |\n| --- | --- | --- | --- | --- | --- |")
    for count in map(int, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), count)
            for suffix in SUFFIXES:
                path = Path(folder, f"a{suffix}")
                done = subprocess.run([sys.executable, "-c", READ, str(path)], check=True, capture_output=True, text=True)
                print(f"| {suffix} | {path.stat().st_size / 2**20:.1f} | {done.stdout.strip()}", flush=True)


if __name__ == "__main__":
    main()
