"""Describe a data set, for people and programs."""

from pathlib import Path
from typing import Any

import torch

from nsrelu_bench.config import RunConfig
from nsrelu_bench.data import downloads
from nsrelu_bench.data.cache import cache_file, cache_folder, cache_problem
from nsrelu_bench.data.downloads import SOURCES, find_form
from nsrelu_bench.data.image_folder import scan_folder
from nsrelu_bench.data.loading import FOLDER, folder_path, load_dataset

#: The splits and their purposes.
SPLITS = {"train": "to train", "val": "to validate", "test": "to test"}


def describe(config: RunConfig) -> dict[str, Any]:
    """Load the data set of a run, fetch it if it is missing, and describe it.

    Returns:
        The examples of each split, shape and classes; mean and standard deviation of the training
        split, per channel, of bytes on a scale from 0 to 1; bytes in memory; the SHA-256 of all
        images and labels; the files and how they were checked; its file in the cache, and what is
        wrong with the cache.

    Raises:
        BenchError: As `load_dataset`.
    """
    data = load_dataset(config)
    splits = {name: getattr(data, name) for name in SPLITS}
    files, key = _files(config)
    cached = cache_file(key) if key else None
    folder = cache_folder() if key else None
    scale = 255 if data.train.images.dtype == torch.uint8 else 1
    return {
        "name": config.dataset,
        **{name: len(split) for name, split in splits.items()},
        "shape": list(data.shape),
        "classes": data.classes,
        "mean": (data.mean / scale).flatten().tolist(),
        "std": (data.std / scale).flatten().tolist(),
        "memory_bytes": sum(s.images.nbytes + s.labels.nbytes for s in splits.values()),
        "sha256": data.digest,
        "files": files,
        "cache": str(cached) if cached else None,
        "cache_problem": (cache_problem(folder) if folder else "no home") if key else None,
        "dtype": str(data.train.images.dtype).removeprefix("torch."),
    }


def _files(config: RunConfig) -> tuple[list[dict[str, str]], str | None]:
    """Return the files of a data set, how each was checked, and its key in the cache."""
    name, data_dir = config.dataset, Path(config.data_dir)
    if name.startswith(FOLDER):
        root = folder_path(name)
        return [{"path": str(root), "checked": "every image decoded"}], scan_folder(root).key
    form = find_form(name, data_dir) if name in SOURCES else None
    if form is None:
        return [], None
    files = [
        {
            "path": str(data_dir / file.path),
            "checked": file.digest.partition(":")[0] if file.digest else "header and length alone",
        }
        for file in form.files
    ]
    return files, downloads.cache_key(name, data_dir) if form.slow else None


def format_description(about: dict[str, Any]) -> str:
    """Format what `describe` returns, one line per fact."""
    channels, height, width = about["shape"]
    splits = (f"{about[split]:,} {use}" for split, use in SPLITS.items())
    scale = " (of 1)" if about["dtype"] == "uint8" else f" ({about['dtype']})"
    lines = {
        "images": ", ".join(splits),
        "shape": f"{channels} x {height} x {width}, {about['classes']} classes",
        "mean": ", ".join(f"{value:.4f}" for value in about["mean"]) + scale,
        "std": ", ".join(f"{value:.4f}" for value in about["std"]),
        "memory": f"{about['memory_bytes'] / 2**20:.1f} MiB",
        "sha256": about["sha256"],
        "cache": about["cache"] or about["cache_problem"] or "none",
    }
    rows = [*lines.items()]
    rows += [("file", f"{file['path']} ({file['checked']})") for file in about["files"]]
    return "\n".join([about["name"], *(f"  {name:8}{text}" for name, text in rows)])
