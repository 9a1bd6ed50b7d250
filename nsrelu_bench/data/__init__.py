"""Data sets as tensors in memory."""

from nsrelu_bench.data.augment import augment_batch
from nsrelu_bench.data.dataset import (
    Dataset,
    Split,
    data_digest,
    describe,
    format_description,
    load_dataset,
)
from nsrelu_bench.data.downloads import SOURCES as PUBLISHED
from nsrelu_bench.data.downloads import local_files

__all__ = [
    "PUBLISHED",
    "Dataset",
    "Split",
    "augment_batch",
    "data_digest",
    "describe",
    "format_description",
    "load_dataset",
    "local_files",
]
