"""The parts of examples/ that studies are made with: patient gates, and random labels."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from examples import random_labels
from examples.patient_rescue import NetRescue, PatientRescue
from nsrelu_bench.activations import nsrelu
from nsrelu_bench.config import RunConfig
from nsrelu_bench.data import load_dataset

OFF, ON = torch.tensor([[-1.0], [-2.0]]), torch.tensor([[-1.0], [2.0]])


def gradient(activation: torch.nn.Module, x: Tensor, grad: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(activation(x), x, grad)[0]


@pytest.mark.parametrize("shape", [(6, 40), (3, 20, 2, 2)])
def test_without_patience_it_is_rescue(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, grad = torch.randn(shape) - 1, torch.randn(shape)
    expected = gradient(lambda x: nsrelu(x, 0.1, gate="rescue", unit_axis=1), x, grad)
    assert torch.equal(gradient(PatientRescue(0.1, 1), x, grad), expected)
    assert (expected[x <= 0] != 0).any()


@pytest.mark.parametrize("kind", [PatientRescue, NetRescue])
def test_the_leak_waits_until_a_unit_was_off_for_long(kind: type[PatientRescue]) -> None:
    activation, upward = kind(0.5, 3), torch.tensor([[-1.0], [-3.0]])
    passed = [
        bool(gradient(activation, x, upward)[0]) for x in (OFF, OFF, OFF, OFF, ON, OFF, OFF, OFF)
    ]
    assert passed == [False, False, True, True, False, False, False, True]


def test_a_unit_is_asked_by_the_sum_of_its_gradients() -> None:
    mixed = torch.tensor([[-3.0], [1.0]])
    assert gradient(PatientRescue(0.5, 1), OFF, mixed).tolist() == [[-1.5], [0.0]]
    assert gradient(NetRescue(0.5, 1), OFF, mixed).tolist() == [[-1.5], [0.5]]
    assert gradient(NetRescue(0.5, 1), OFF, -mixed).tolist() == [[0.0], [0.0]]


def test_how_long_a_unit_was_off_is_part_of_the_state() -> None:
    before, after = NetRescue(0.5, 3), NetRescue(0.5, 3)
    for _ in range(2):
        before(OFF.clone().requires_grad_())
    after.load_state_dict(before.state_dict())
    assert gradient(after, OFF, torch.full((2, 1), -1.0)).tolist() == [[-0.5], [-0.5]]


def test_evaluation_does_not_count() -> None:
    activation = NetRescue(0.5, 2).eval()
    for _ in range(3):
        assert activation(OFF).tolist() == [[0.0], [0.0]]
    assert gradient(activation.train(), OFF, torch.full((2, 1), -1.0)).tolist() == [[0.0], [0.0]]


def test_random_labels_are_the_same_each_time() -> None:
    images, labels = random_labels.digits(Path())["train"]
    again = random_labels.digits(Path())
    assert all(torch.equal(labels, again[part][1]) for part in ("train", "val", "test"))
    assert len(images) == len(labels) == random_labels.IMAGES
    assert labels.unique().tolist() == list(range(10))
    assert 0.05 < (labels == _true_labels(images)).float().mean() < 0.15


def _true_labels(images: Tensor) -> Tensor:
    train = load_dataset(RunConfig()).train
    known = {
        image.numpy().tobytes(): int(label)
        for image, label in zip(train.images, train.labels, strict=True)
    }
    return torch.tensor([known[image.numpy().tobytes()] for image in images])
