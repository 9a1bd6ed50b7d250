import pytest
import torch
from helpers.tiny_runs import tiny
from torch import nn

from nsrelu_bench.activations import NSReLU
from nsrelu_bench.training import gradient_watch, run
from nsrelu_bench.training.gradient_watch import GradientWatch, first_layer_cosine


def network(activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), activation, nn.Dropout(0.5), nn.Linear(8, 3))


TOY_INPUTS = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
TOY_LABELS = torch.arange(20) % 3


def slow_cosine(leak: float) -> float:
    """The same from two networks, one with ReLU and one with NSReLU, in double precision."""
    gradients = []
    for activation in (nn.ReLU(), NSReLU(leak)):
        net = network(activation).eval()
        nn.functional.cross_entropy(net(TOY_INPUTS), TOY_LABELS).backward()
        gradients.append(net[0].weight.grad.double().flatten())
    return torch.nn.functional.cosine_similarity(*gradients, dim=0).item()


@pytest.mark.parametrize("leak", [0.1, 1.0])
def test_the_cosine_is_that_of_the_two_gradients(leak: float) -> None:
    cosine = first_layer_cosine(network(NSReLU(leak)), TOY_INPUTS, TOY_LABELS)
    assert cosine == pytest.approx(slow_cosine(leak), abs=1e-6)
    assert cosine < 1


@pytest.mark.parametrize(
    ("net", "inputs"),
    [
        (network(nn.ReLU()), TOY_INPUTS),
        (nn.Sequential(NSReLU(0.1)), TOY_INPUTS[:, :3]),
        (network(NSReLU(0.1)), torch.full_like(TOY_INPUTS, torch.nan)),
        (network(NSReLU(0.1)), torch.zeros_like(TOY_INPUTS)),
    ],
    ids=["tied", "no weights", "NaN", "no gradient"],
)
def test_there_is_no_cosine_without_two_gradients(net: nn.Module, inputs: torch.Tensor) -> None:
    assert first_layer_cosine(net, inputs, TOY_LABELS) is None


def test_comparing_does_not_change_network_or_generators() -> None:
    net = network(NSReLU(0.1))
    before, state = [p.clone() for p in net.state_dict().values()], torch.get_rng_state()
    first_layer_cosine(net, TOY_INPUTS, TOY_LABELS)
    assert all(map(torch.equal, before, net.state_dict().values()))
    assert all(p.grad is None for p in net.parameters())
    assert net.training
    assert torch.equal(torch.get_rng_state(), state)


def test_the_first_step_below_the_threshold_is_kept() -> None:
    watch = GradientWatch()
    assert [step for step in range(1, 350) if watch.due(step)] == [100, 200, 300]
    watch.note([{"surrogate_cosine": gradient_watch.LOST_BELOW}, {"surrogate_cosine": 0.1}], 55)
    watch.note([{"surrogate_cosine": None}], 110)
    watch.note([], 120)
    assert watch.lost_step is None
    watch.note([{"surrogate_cosine": 0.5}], 165)
    watch.note([{"surrogate_cosine": 0.2}], 220)
    assert watch.lost_step == 165
    assert not watch.due(300)


def test_a_run_records_the_step_and_a_tied_one_never_does() -> None:
    settings = {"optimizer": "adam", "lr": 0.02, "depth": 4, "width": 32}
    lost = [e.metrics["gradient_lost_step"] for e in run(tiny(act="nsrelu(1)", **settings))]
    assert lost == [None, 20, 20]  # the end of the first epoch
    assert {e.metrics["gradient_lost_step"] for e in run(tiny(act="relu", **settings))} == {None}


def test_the_watch_works_without_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_watch, "WATCH_EVERY", 5)
    settings = {"act": "nsrelu(1)", "lr": 0.05, "epochs": 2, "measures": "none"}
    *_, last = run(tiny(**settings))
    assert last.metrics["gradient_lost_step"] % 5 == 0
