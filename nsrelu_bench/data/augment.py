"""Augment training images, a whole batch at a time, on the device of the images."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nsrelu_bench.errors import lookup

#: Pixels of zeros around an image before a crop is taken.
PADDING = 4


def augment_batch(images: Tensor, names: str, mean: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images, each changed at random independently of the others.

    The random numbers are drawn on the CPU, always in the order of `TRANSFORMS`, so that the
    generator's state decides them on every device.

    Args:
        images: `(N, C, H, W)`, uint8 or float32; their memory format is kept.
        names: Names of `TRANSFORMS` with + between them, or "none".
        mean: What `cutout` fills with, `(C, 1, 1)`; rounded for uint8.
        generator: A generator of the CPU.

    Raises:
        UsageError: There is no such augmentation.
    """
    if names == "none":
        return images
    chosen = names.split("+")
    for name in chosen:
        lookup(TRANSFORMS, name, "augmentation")
    memory_format = (
        torch.channels_last
        if images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
        else torch.contiguous_format
    )
    images = images.contiguous()  # all three are faster on it
    for name, augment in TRANSFORMS.items():
        if name in chosen:
            images = augment(images, mean, generator)
    return images.contiguous(memory_format=memory_format)


def _crop(images: Tensor, _: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by up to `PADDING` pixels each way; the uncovered border is 0."""
    count, channels, height, width = images.shape
    padded = F.pad(images, (PADDING,) * 4).flatten(2)
    shifts = torch.randint(2 * PADDING + 1, (2, count, 1), generator=generator)
    top, left = shifts.to(images.device, non_blocking=True)
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.arange(width, device=images.device)
    positions = (rows[:, :, None] * (width + 2 * PADDING) + columns[:, None, :]).view(count, 1, -1)
    return padded.gather(2, positions.expand(-1, channels, -1)).view(images.shape)


def _flip(images: Tensor, _: Tensor, generator: torch.Generator) -> Tensor:
    """Flip each image left to right with probability 1/2."""
    drawn = torch.randint(2, (len(images), 1), generator=generator)
    flipped = drawn.to(images.device, non_blocking=True)
    columns = torch.arange(images.shape[3], device=images.device)
    columns = torch.where(flipped == 1, columns.flip(0), columns)
    return images.gather(3, columns[:, None, None, :].expand(images.shape))


def _cutout(images: Tensor, mean: Tensor, generator: torch.Generator) -> Tensor:
    """Fill a rectangle of half the height and width with the mean, its centre anywhere.

    It may reach over the border; then less of the image is cut out.

    Source: DeVries & Taylor 2017, https://arxiv.org/abs/1708.04552, section 3.2.
    """
    inside = []
    for side in images.shape[2:]:
        drawn = torch.randint(side, (len(images), 1), generator=generator)
        centre = drawn.to(images.device, non_blocking=True)
        pixel = torch.arange(side, device=images.device)
        first = centre - side // 4
        inside.append((first <= pixel) & (pixel < first + side // 2))
    cut = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    filling = mean if images.is_floating_point() else mean.round()
    return torch.where(cut, filling.to(images), images)


#: Augmentations by name, in the order in which they are drawn and applied.
TRANSFORMS: dict[str, Callable[[Tensor, Tensor, torch.Generator], Tensor]] = {
    "crop": _crop,
    "flip": _flip,
    "cutout": _cutout,
}
