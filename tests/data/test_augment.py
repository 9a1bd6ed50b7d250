import numpy as np
import pytest
import torch
from torch import Tensor

from nsrelu_bench.config import registry
from nsrelu_bench.data.augment import TRANSFORMS, augment_batch
from nsrelu_bench.errors import UsageError

MEAN = torch.tensor([100.4, 120.6, 140.0]).view(3, 1, 1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 64, height: int = 12, width: int = 10) -> Tensor:
    """Images of which every pixel is at least 1, so that padding differs from them."""
    shape = (count, 3, height, width)
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=generator())


def test_every_registered_augmentation_has_code() -> None:
    assert list(TRANSFORMS) == list(registry.AUGMENTATIONS)


def test_a_crop_is_a_window_of_the_padded_image() -> None:
    before = images()
    after = augment_batch(before, "crop", MEAN, generator())
    padded = np.pad(before.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)))
    seen = set()
    for index in range(len(before)):
        windows = {
            (top, left): padded[index, :, top : top + 12, left : left + 10]
            for top in range(9)
            for left in range(9)
        }
        (place,) = [p for p, w in windows.items() if np.array_equal(w, after[index].numpy())]
        seen.add(place)
    assert len(seen) > 30  # each image has a place of its own


def test_crops_reach_every_place_equally_often() -> None:
    ramp = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 1, 9).expand(8100, 1, 9, 9)
    after = augment_batch(ramp, "crop", MEAN[:1], generator())
    counts = torch.bincount(after[:, 0, 4, 4].long(), minlength=10)[1:]
    assert (counts - 900).abs().max() < 150  # five standard deviations


def test_a_flip_mirrors_half_of_the_images() -> None:
    before = images(1000)
    after = augment_batch(before, "flip", MEAN, generator())
    same = (after == before).flatten(1).all(1)
    mirrored = (after == before.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 420 < int(mirrored.sum()) < 580


def test_cutout_fills_a_rectangle_with_the_rounded_mean() -> None:
    before = torch.zeros(500, 3, 12, 10, dtype=torch.uint8)
    after = augment_batch(before, "cutout", MEAN, generator())
    filled = torch.tensor([100, 121, 140], dtype=torch.uint8).view(3, 1, 1)
    whole = 0
    for image in after:
        cut = image[0] != 0
        assert torch.equal(image, torch.where(cut, filled, torch.zeros_like(image)))
        rows, columns = cut.any(1).nonzero()[:, 0], cut.any(0).nonzero()[:, 0]
        height, width = len(rows), len(columns)
        assert int(cut.sum()) == height * width  # a rectangle, without holes
        assert int(rows[-1] - rows[0]) == height - 1
        assert 3 <= height <= 6
        assert 3 <= width <= 5
        whole += height == 6 and width == 5
    assert 0 < whole < 500  # some reach over the border


@pytest.mark.parametrize("names", [*TRANSFORMS, "crop+flip+cutout"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_only_the_generator_decides(names: str, memory_format: torch.memory_format) -> None:
    before = images().contiguous(memory_format=memory_format)
    kept = before.clone()
    torch.manual_seed(1)
    after = augment_batch(before, names, MEAN, generator(7))
    torch.manual_seed(2)
    again = augment_batch(kept.contiguous(), names, MEAN, generator(7))
    assert torch.equal(before, kept)
    assert torch.equal(after, again)
    assert not torch.equal(after, augment_batch(before, names, MEAN, generator(8)))
    assert not torch.equal(after, before)
    assert (after.dtype, after.shape) == (torch.uint8, before.shape)
    assert after.is_contiguous(memory_format=memory_format)
    assert after.stride() == before.stride()


def test_the_order_of_the_names_does_not_matter() -> None:
    first = augment_batch(images(), "cutout+crop", MEAN, generator())
    assert torch.equal(first, augment_batch(images(), "crop+cutout", MEAN, generator()))


def test_none_changes_and_draws_nothing() -> None:
    before, chance = images(), generator()
    state = chance.get_state()
    assert augment_batch(before, "none", MEAN, chance) is before
    assert torch.equal(chance.get_state(), state)


def test_gray_images_and_a_batch_of_one() -> None:
    before = images(1)[:, :1]
    after = augment_batch(before, "crop+flip+cutout", MEAN[:1], generator())
    assert after.shape == before.shape


def test_an_unknown_augmentation_is_named() -> None:
    with pytest.raises(UsageError, match=r"unknown augmentation 'mixup'; choose from: crop, flip"):
        augment_batch(images(), "crop+mixup", MEAN, generator())
