"""How long it takes to compare 10,000 runs of 20 epochs, and how much memory.

    python benchmarks/compare_speed.py [--runs 10000] [--seeds 20] [--folder FOLDER]

Makes the run folders (their numbers are made up, their files are as a run leaves them), and times
`nsrelu-bench compare` without a summary.csv, with one from before 1 % of the runs changed, and with
an up-to-date one. The folder is a temporary one unless it is given; then it stays, and the next
call uses its runs again.

The aims: 10,000 runs in 30 s on two cores without a summary.csv, 100,000 runs in 60 s and 1 GB
with one.
"""

import argparse
import csv
import hashlib
import io
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.config.yaml import format_yaml
from nsrelu_bench.records.schema import COLUMNS, csv_files

TIMED_ACTS = ("relu", "leaky_relu(0.1)", "nsrelu(0.01)", "nsrelu(0.1)", "nsrelu(1)")
RATES = tuple(0.01 * 1.5**i for i in range(10))
WRITTEN_EPOCHS = 20
LAYER_COUNT = 3
ENVIRONMENT_JSON = json.dumps({"processor": "made up", "packages": {"torch": "2.15.0"}}, indent=2)


def main() -> None:
    """Make the runs, compare them three times, print a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        study = (arguments.folder or Path(temporary)) / "many"
        folders = sorted(path.parent for path in study.glob("*/config.yaml"))
        if len(folders) != arguments.runs:
            start = time.perf_counter()
            folders = make_study(study, arguments.runs, arguments.seeds)
            print(f"made {len(folders)} runs in {time.perf_counter() - start:.0f} s", flush=True)
        (study / "summary.csv").unlink(missing_ok=True)
        compare(study, "no summary.csv, every run is read")
        for run in folders[::100]:
            status = json.loads((run / "status.json").read_text(encoding="utf-8"))
            changed = status | {"error": None if "error" in status else ""}
            (run / "status.json").write_text(json.dumps(changed), encoding="utf-8")
        compare(study, "1 % of the runs have changed since")
        compare(study, "summary.csv is up to date")


def make_study(study: Path, runs: int, seeds: int) -> list[Path]:
    """Write so many run folders."""
    groups = itertools.product(range(1, runs), RATES, TIMED_ACTS)
    texts = CsvTexts()
    folders: list[Path] = []
    for width, lr, act in groups:
        config = RunConfig(act=act, lr=lr, width=16 * width, epochs=WRITTEN_EPOCHS)
        text = format_yaml(config.settings)
        for seed in range(seeds):
            if len(folders) == runs:
                return folders
            run_id = config.model_copy(update={"seed": seed}).run_id
            yaml = text.replace("\nseed: 0\n", f"\nseed: {seed}\n")
            folders.append(study / run_id)
            write_run(folders[-1], {"config.yaml": yaml} | texts.draw())
    return folders


class CsvTexts:
    """The CSV files of a run, whose final row alone differs from run to run."""

    def __init__(self) -> None:
        self.random = random.Random(0)  # noqa: S311
        rows = {
            "layers.csv": (WRITTEN_EPOCHS + 1) * LAYER_COUNT,
            "quantiles.csv": 200 * LAYER_COUNT,
        }
        self.fixed = {
            name: self.text(
                [list(COLUMNS[name]), *(self.row(name) for _ in range(rows.get(name, 20)))]
            )
            for name in csv_files(RunConfig())
        }

    def draw(self) -> dict[str, str]:
        """Return the files of another run."""
        return {name: text + self.text([self.row(name)]) for name, text in self.fixed.items()}

    def row(self, name: str) -> list[object]:
        """Return made-up values for the columns of a file."""
        return [WRITTEN_EPOCHS, *(self.random.random() for _ in COLUMNS[name][1:])]

    @staticmethod
    def text(rows: list[list[object]]) -> str:
        """Return rows as CSV."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(rows)
        return buffer.getvalue()


def write_run(folder: Path, files: dict[str, str]) -> None:
    """Write a completed run."""
    folder.mkdir(parents=True)
    sums = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    status = {"state": "completed", "epoch": WRITTEN_EPOCHS, "sha256": sums}
    others = {"status.json": json.dumps(status), "env.json": ENVIRONMENT_JSON, ".lock": ""}
    for name, text in (files | others).items():
        (folder / name).write_text(text, encoding="utf-8")


def compare(study: Path, case: str) -> None:
    """Time one comparison in a process of its own."""
    out = study.parent / "comparison.txt"
    command = [sys.executable, "-m", "nsrelu_bench", "compare", str(study), "--out", str(out)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, code, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - start
    if code:
        sys.exit(f"{' '.join(command)} failed")
    cpu_s, memory_mib = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
    print(f"{case}: {wall_s:.1f} s ({cpu_s:.1f} s of CPU), peak {memory_mib:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
