"""Data sets of images with random labels, to be memorised: what can a network still learn?

``nsrelu-bench train --dataset examples.random_labels:digits --tasks 30`` gives a new task of
memorising each time, as the pixels are permuted. There is nothing to generalise, so the same images
serve for training, validation and test, and every accuracy is the share memorised.
"""

from pathlib import Path

import torch
from torch import Tensor

from nsrelu_bench import RunConfig
from nsrelu_bench.data import load_dataset

IMAGES = 1000


def digits(data_dir: Path) -> dict[str, tuple[Tensor, Tensor]]:  # noqa: ARG001
    """A thousand digits of mnist5k, with labels drawn at random."""
    images = load_dataset(RunConfig(dataset="mnist5k")).train.images
    random = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(images), generator=random)[:IMAGES]
    labels = torch.randint(10, (IMAGES,), generator=random)
    return dict.fromkeys(("train", "val", "test"), (images[chosen], labels))
