"""Kill a study at random moments, resume it each time, and compare it with an undisturbed one.

    python benchmarks/kill_resume.py [--kills 50] [--seed 0] [--span 3] [--epochs 12]
        [--dataset mnist5k] [--model mlp cnn] [--workers 2]

A kill is SIGKILL to the sweep and all its processes: one in five within `span` seconds of its
start, the others within `span` seconds after its first epoch. When a study is done, the next kills
hit the same study in a new folder. All CSV files must have the same bytes, except timing.csv, which
has times.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from nsrelu_bench.records.checkpoint import unpack
from nsrelu_bench.records.schema import CHECKPOINT
from nsrelu_bench.records.status import read_status

KILLED_STUDY = """\
name: kills
dataset: {dataset}
train_size: 1000
probe_size: 500
dropout: 0.1
epochs: {epochs}
probe_every: 10
grid:
  act: [relu, nsrelu(0.1)]
  model: [{models}]
  optimizer: [sgd, adam]
"""


class Sweep:
    """A `nsrelu-bench sweep` of the study, in a process group of its own."""

    def __init__(self, study: Path, results: Path, workers: int) -> None:
        self.study = results / "kills"
        command = [sys.executable, "-m", "nsrelu_bench", "sweep", str(study), "--quiet"]
        command += ["--results", str(results), "--workers", str(workers)]
        command += ["--checkpoint-after", "0"]
        self.began = time.time_ns()
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def has_ended_an_epoch(self) -> bool:
        """Whether it has left a checkpoint."""
        for path in self.study.glob(f"*/{CHECKPOINT}"):
            with suppress(FileNotFoundError):  # the run is done by now
                if path.stat().st_mtime_ns > self.began:
                    return True
        return False

    def kill(self) -> None:
        """Kill it and its workers."""
        with suppress(ProcessLookupError):  # it was done already
            os.killpg(self.process.pid, signal.SIGKILL)

    def ended_well(self) -> bool:
        """Wait for it; return whether it was done before it was killed.

        Raises:
            RuntimeError: It ended in another way.
        """
        _, told = self.process.communicate()
        if self.process.returncode not in (0, -signal.SIGKILL):
            raise RuntimeError(f"the sweep ended with {self.process.returncode}: {told}")
        return self.process.returncode == 0


def kill_once(sweep: Sweep, chance: random.Random, span: float) -> float:
    """Kill a sweep at a random moment; return the seconds that it ran."""
    starting, delay = chance.random() < 0.2, chance.random()
    while not starting and not sweep.has_ended_an_epoch() and sweep.process.poll() is None:
        time.sleep(0.005)
    time.sleep(delay * span)
    sweep.kill()
    return (time.time_ns() - sweep.began) / 1e9


def left_behind(study: Path) -> tuple[int, list[tuple[int, int]]]:
    """Count the runs that are done, and for each other that has begun the epochs kept and lost."""
    done, begun = 0, []
    for folder in (path for path in study.glob("*") if path.is_dir()):
        if read_status(folder).done:
            done += 1
        elif (folder / "metrics.csv").exists():
            rows = (folder / "metrics.csv").read_bytes().count(b"\n") - 1
            path = folder / CHECKPOINT
            kept = unpack(path.read_bytes())[0]["epoch"] + 1 if path.exists() else 0
            begun.append((kept, max(rows, 0) - kept))
    return done, begun


def differences(study: Path, whole: Path) -> Iterator[str]:
    """Compare a study with the undisturbed one, and look for files that should not exist.

    A kill between the last status and the end may leave the checkpoint of a run that is done.
    """
    for folder in (path for path in whole.glob("*") if path.is_dir()):
        ours = study / folder.name
        names = sorted(path.name for path in folder.iterdir())
        found = sorted(path.name for path in ours.iterdir()) if ours.is_dir() else []
        if names != [name for name in found if name != CHECKPOINT]:
            yield f"{ours} has {', '.join(found)}"
            continue
        for name in (n for n in names if n.endswith((".csv", ".yaml"))):
            theirs, mine = ((place / name).read_bytes() for place in (folder, ours))
            if name == "timing.csv":
                theirs, mine = (epochs(content) for content in (theirs, mine))
            if theirs != mine:
                yield f"{ours / name} differs"
    if (study / "summary.csv").read_bytes() != (whole / "summary.csv").read_bytes():
        yield f"{study / 'summary.csv'} differs"


def epochs(timing: bytes) -> bytes:
    """The first column of timing.csv."""
    return b"\n".join(line.split(b",")[0] for line in timing.splitlines())


def disturb(
    file: Path, root: Path, kills: int, chance: random.Random, span: float, workers: int
) -> list[Path]:
    """Kill sweeps of a study, and let the last one finish; returns the studies' folders."""
    studies = [root / "0" / "kills"]
    number = resumed = lost = 0
    while True:
        sweep = Sweep(file, studies[-1].parent, workers)
        had = kill_once(sweep, chance, span) if number < kills else 0.0
        if not sweep.ended_well():
            number += 1
            done, begun = left_behind(sweep.study)
            resumed += sum(kept > 0 for kept, _ in begun)
            lost = max(lost, *(lost_now for _, lost_now in begun), 0)
            told = ", ".join(f"{kept} epochs kept and {gone} lost" for kept, gone in begun)
            where = f"kill {number}, study {len(studies)}, after {had:.2f} s"
            print(f"{where}: {done} runs done; under way: {told or 'none'}", flush=True)
        elif number < kills:
            studies.append(root / str(len(studies)) / "kills")
        else:
            print(f"{resumed} times a run had a checkpoint left; it lost {lost} epochs at most")
            return studies


def main() -> int:
    """Print a line per kill and a summary; return 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--span", type=float, default=3.0)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--dataset", default="mnist5k")
    parser.add_argument("--model", nargs="+", default=["mlp", "cnn"])
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    chance = random.Random(given.seed)  # noqa: S311 -- moments, no secrets
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        file = root / "study.yaml"
        text = KILLED_STUDY.format(
            dataset=given.dataset, epochs=given.epochs, models=", ".join(given.model)
        )
        file.write_text(text, encoding="utf-8")
        began = time.perf_counter()
        whole = Sweep(file, root / "whole", given.workers)
        whole.ended_well()
        print(f"undisturbed: {time.perf_counter() - began:.1f} s", flush=True)
        studies = disturb(file, root, given.kills, chance, given.span, given.workers)
        bad = [text for study in studies for text in differences(study, whole.study)]
    print(*bad, sep="\n", end="\n" if bad else "")
    print(f"{given.kills} kills, {len(studies)} studies: {len(bad)} files differ")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
