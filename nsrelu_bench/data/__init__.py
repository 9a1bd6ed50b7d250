"""Data sets as tensors in memory."""

from nsrelu_bench.data.augment import augment_batch
from nsrelu_bench.data.cache import cache_folder, cache_problem
from nsrelu_bench.data.dataset import Dataset, Split
from nsrelu_bench.data.description import describe, format_description
from nsrelu_bench.data.downloads import SOURCES as PUBLISHED
from nsrelu_bench.data.downloads import local_files
from nsrelu_bench.data.loading import count_classes, data_digest, load_dataset

__all__ = [
    "PUBLISHED",
    "Dataset",
    "Split",
    "augment_batch",
    "cache_folder",
    "cache_problem",
    "count_classes",
    "data_digest",
    "describe",
    "format_description",
    "load_dataset",
    "local_files",
]
