"""Random changes of training images, on the device that they are on, without a loop over them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nsrelu_bench.errors import lookup

#: Pixels of zeros around the image that a crop is taken of.
PADDING = 4


def augment_batch(images: Tensor, names: str, mean: Tensor, generator: torch.Generator) -> Tensor:
    """Change images at random, each by itself; the images given stay as they are.

    The numbers are drawn on the CPU, in one order whatever the order of the names, so that a
    generator's state decides them on every device.

    Args:
        images: Bytes `(N, C, H, W)`, uint8; their memory format is kept.
        names: Of `AUGMENTATIONS` with + between them, or "none".
        mean: What `cutout` fills with, a byte a channel, `(C, 1, 1)`.
        generator: Of the CPU.

    Raises:
        UsageError: There is no such augmentation.
    """
    if names == "none":
        return images
    chosen = names.split("+")
    for name in chosen:
        lookup(AUGMENTATIONS, name, "augmentation")
    memory_format = (
        torch.channels_last
        if images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
        else torch.contiguous_format
    )
    images = images.contiguous()  # all three are faster on it
    for name, change in AUGMENTATIONS.items():
        if name in chosen:
            images = change(images, mean, generator)
    return images.contiguous(memory_format=memory_format)


def _crop(images: Tensor, _: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by up to `PADDING` pixels each way; what comes in is 0."""
    count, channels, height, width = images.shape
    padded = F.pad(images, (PADDING,) * 4).flatten(2)
    shifts = torch.randint(2 * PADDING + 1, (2, count, 1), generator=generator)
    top, left = shifts.to(images.device, non_blocking=True)
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.arange(width, device=images.device)
    places = (rows[:, :, None] * (width + 2 * PADDING) + columns[:, None, :]).view(count, 1, -1)
    return padded.gather(2, places.expand(-1, channels, -1)).view(images.shape)


def _flip(images: Tensor, _: Tensor, generator: torch.Generator) -> Tensor:
    """Exchange left and right in every other image, on average."""
    drawn = torch.randint(2, (len(images), 1), generator=generator)
    flipped = drawn.to(images.device, non_blocking=True)
    columns = torch.arange(images.shape[3], device=images.device)
    columns = torch.where(flipped == 1, columns.flip(0), columns)
    return images.gather(3, columns[:, None, None, :].expand(images.shape))


def _cutout(images: Tensor, mean: Tensor, generator: torch.Generator) -> Tensor:
    """Fill a rectangle of half the height and width with the mean, its centre anywhere.

    It reaches over the border as it comes: then less of the image is cut out.

    Source: DeVries & Taylor 2017, https://arxiv.org/abs/1708.04552, section 3.2.
    """
    inside = []
    for side in images.shape[2:]:
        drawn = torch.randint(side, (len(images), 1), generator=generator)
        centre = drawn.to(images.device, non_blocking=True)
        place = torch.arange(side, device=images.device)
        first = centre - side // 4
        inside.append((first <= place) & (place < first + side // 2))
    cut = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return torch.where(cut, mean.round().to(images), images)


#: By name, in the order in which they are applied and drawn.
AUGMENTATIONS: dict[str, Callable[[Tensor, Tensor, torch.Generator], Tensor]] = {
    "crop": _crop,
    "flip": _flip,
    "cutout": _cutout,
}
