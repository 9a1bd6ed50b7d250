"""A data set as tensors in memory, and its split without random numbers."""

import functools
import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

#: Images `(N, C, H, W)`, bytes or float32, and labels `(N,)` of "train", "test" and perhaps "val".
Parts = dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]


@dataclass(frozen=True)
class Split:
    """Images `(N, C, H, W)`, uint8 or float32, and their labels `(N,)`, int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> "Split":
        return Split(self.images[index], self.labels[index])

    def to(self, device: str, memory_format: torch.memory_format) -> "Split":
        """Move the whole split to a device."""
        images = self.images.to(device).contiguous(memory_format=memory_format)
        return Split(images, self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """The three splits of a data set, and what normalises its images, `(C, 1, 1)` each."""

    train: Split
    val: Split
    test: Split
    classes: int
    mean: Tensor
    std: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of all images and labels, in the order of the splits."""
        digest = hashlib.sha256()
        for split in (self.train, self.val, self.test):
            digest.update(split.images.contiguous().numpy().data)
            digest.update(split.labels.numpy().data)
        return digest.hexdigest()

    def part_of_train(self, size: int) -> Split:
        """Return a stratified part of the training split, all of it if it has no more."""
        return self.train[stratified(self.train.labels, size)]

    def inputs(self, images: Tensor) -> Tensor:
        """Normalise images to float32: mean 0 and variance 1 per channel of the training split."""
        return images.to(torch.float32, copy=True).sub_(self.mean).div_(self.std)

    def to(self, device: str, memory_format: torch.memory_format) -> "Dataset":
        """Move all splits to a device."""
        splits = {
            name: getattr(self, name).to(device, memory_format) for name in ("train", "val", "test")
        }
        return replace(self, mean=self.mean.to(device), std=self.std.to(device), **splits)


def from_parts(parts: Parts, classes: int, val: int | None = None) -> Dataset:
    """Make a data set; without a part "val", `val` training examples validate, or a tenth."""
    splits = {part: _split(*arrays) for part, arrays in parts.items()}
    if "val" not in splits:
        size = max(1, len(splits["train"]) // 10) if val is None else val
        return _take_val(splits["train"], splits["test"], size, classes)
    mean, std = moments(splits["train"].images)
    return Dataset(**splits, classes=classes, mean=mean, std=std)


def from_whole(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[Any], test: int, val: int
) -> Dataset:
    """Split images and labels of ten classes that have no published split."""
    whole = _split(images, labels)
    chosen = stratified(whole.labels, test)
    return _take_val(whole[_others(chosen, len(whole))], whole[chosen], val, classes=10)


def stratified(labels: Tensor, size: int) -> Tensor:
    """Choose `size` examples, each class in proportion: indices `(min(size, N),)`, ascending.

    They are evenly spaced over the examples sorted by class. No random number is used, so they are
    always the same.
    """
    count = len(labels)
    size = min(size, count)
    by_class = torch.argsort(labels, stable=True)
    ranks = (torch.arange(size) * count + count // 2) // max(size, 1)
    return torch.sort(by_class[ranks])[0]


def moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per channel, `(C, 1, 1)` each; 1 for a constant one."""
    pixels = images.transpose(0, 1).flatten(1)
    if images.dtype == torch.uint8:
        # From histograms, in whole numbers throughout: the same bits on every machine.
        counts = torch.stack([torch.bincount(channel, minlength=256) for channel in pixels])
        values = torch.arange(256, dtype=torch.float64)
        mean = counts.double() @ values / pixels.shape[1]
        std = (counts.double() @ values**2 / pixels.shape[1] - mean**2).sqrt()
    else:
        std, mean = torch.std_mean(pixels.double(), dim=1, correction=0)
    std[std == 0] = 1.0
    return mean.float().view(-1, 1, 1), std.float().view(-1, 1, 1)


def _take_val(train: Split, test: Split, val: int, classes: int) -> Dataset:
    """Take a validation split out of the training split, and the mean and std of the rest."""
    chosen = stratified(train.labels, val)
    val_split, train = train[chosen], train[_others(chosen, len(train))]
    return Dataset(train, val_split, test, classes, *moments(train.images))


def _split(images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> Split:
    return Split(
        torch.from_numpy(np.ascontiguousarray(images)),
        torch.from_numpy(labels.astype(np.int64)),
    )


def _others(chosen: Tensor, count: int) -> Tensor:
    rest = torch.ones(count, dtype=torch.bool)
    rest[chosen] = False
    return rest.nonzero().squeeze(1)
