"""The slowly changing regression of examples/: seven inputs against autograd on twenty."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from examples.slow_regression import (
    ARMS,
    BETA,
    STEP_SIZE,
    Learner,
    Teacher,
    app,
    stream,
    summarise,
)
from nsrelu_bench.activations import LocalLinear, build

SEEDS, TASKS, STEPS, MEAN_NORM = [3, 8], 3, 25, 3.041
#: What the package calls an arm; the others are not activations of its own.
OF_THE_PACKAGE = {
    "relu": "relu",
    "leaky_relu(0.1)": "leaky_relu(0.1)",
    "leaky_relu(0.1)/relu": "leaky_relu(0.1)/relu",
    "nsrelu(0.1)": "nsrelu(0.1)",
    "up(0.1)": "up(0.1)",
    "down(0.1)": "down(0.1)",
}


def tasks():
    return list(stream(SEEDS, TASKS, STEPS, MEAN_NORM))


def examples(task, row):
    """The inputs and targets of one seed, in full."""
    for pattern in task.order[row]:
        yield torch.cat([task.fixed[row], task.free[row, pattern]]), task.targets[row, pattern]


def network(learner, row, activation):
    """The network of one seed, as a module."""
    net = nn.Sequential(nn.Linear(20, 100), activation, nn.Linear(100, 1)).double()
    with torch.no_grad():
        net[0].weight.copy_(learner.weight[row].T)
        net[0].bias.copy_(learner.bias[row, 0])
        net[2].weight.copy_(learner.out[row])
        net[2].bias.copy_(learner.out_bias[row, 0])
    return net


def learned_by_autograd(net, arm, row):
    groups = [
        {"params": [net[0].weight], "weight_decay": arm.weight_decay},
        {"params": [net[0].bias], "weight_decay": arm.bias_decay},
        {"params": net[2].parameters()},
    ]
    optimizer = torch.optim.SGD(groups, lr=STEP_SIZE)
    errors = []
    for task in tasks():
        for x, y in examples(task, row):
            loss = nn.functional.mse_loss(net(x[None])[0, 0], y)
            errors.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return errors


class Surrogate(nn.Module):
    """ReLU with a slope below 0 that is a function of x: what the package has no name for."""

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        leaked = self.slope(x.detach()) * x * (x <= 0)
        return x.relu() + leaked - leaked.detach()


def reference(name):
    base = name.split(" ")[0]
    if base == "reflected(0.1)":
        return Surrogate(lambda _: -0.1)
    if base == "quadratic(0.01)":
        return Surrogate(lambda x: 0.01 * x)
    return build(OF_THE_PACKAGE[base])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n for n in ARMS if "projected" not in n and "all inputs" not in n]
)
def test_an_arm_learns_as_autograd_does(name):
    learner = Learner(ARMS[name], SEEDS, torch.float64)
    nets = [network(learner, row, reference(name)) for row in range(len(SEEDS))]
    with torch.no_grad():
        mine = torch.cat([learner.learn(task) for task in tasks()])
    for row, net in enumerate(nets):
        np.testing.assert_allclose(mine[:, row], learned_by_autograd(net, ARMS[name], row), 1e-8)
        end = network(learner, row, nn.ReLU())
        for trained, expected in zip(end.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(trained, expected, rtol=1e-7, atol=1e-10)


def learned_by_hand(net, arm, row):
    """Learn in all twenty inputs, with what autograd and the package have no name for."""
    (w, b, v, c), errors = (p.detach().clone() for p in net.parameters()), []
    for task in tasks():
        inputs = torch.stack([torch.cat([task.fixed[row], free]) for free in task.free[row]])
        mean = inputs.mean(0)
        for x, y in examples(task, row):
            pre = w @ x + b
            error = v[0] @ pre.relu() + c[0] - y
            errors.append(error**2)
            grad = 2 * error * v[0]
            off = (pre <= 0) * 0.1 * grad
            leak_x, leak_bias = x, 1.0
            if arm.projected:
                leak_x, leak_bias = x - (x @ mean) / (mean @ mean) * mean, 0.0
            else:
                off *= (inputs @ w.T + b <= 0).all(0) & (grad < 0)
            on = (pre > 0) * grad
            v = v - STEP_SIZE * 2 * error * pre.relu()
            c = c - STEP_SIZE * 2 * error
            moved = torch.outer(on, x) + torch.outer(off, leak_x) + arm.weight_decay * w
            w, b = w - STEP_SIZE * moved, b - STEP_SIZE * (on + leak_bias * off)
    return torch.stack(errors), (w, b, v, c)


@pytest.mark.parametrize("name", [n for n in ARMS if "projected" in n or "all inputs" in n])
def test_an_arm_learns_as_its_definition_says(name):
    learner = Learner(ARMS[name], SEEDS, torch.float64)
    nets = [network(learner, row, nn.ReLU()) for row in range(len(SEEDS))]
    with torch.no_grad():
        mine = torch.cat([learner.learn(task) for task in tasks()])
    for row, net in enumerate(nets):
        errors, weights = learned_by_hand(net, ARMS[name], row)
        torch.testing.assert_close(mine[:, row], errors, rtol=1e-6, atol=1e-12)
        end = network(learner, row, nn.ReLU())
        for trained, expected in zip(end.parameters(), weights, strict=True):
            torch.testing.assert_close(trained.detach(), expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(("gate", "same"), [("rescue", "up"), ("dead", "nsrelu")])
def test_with_batch_one_a_unit_that_is_off_is_dead(gate, same):
    torch.manual_seed(0)
    x, grad = torch.randn(2, 1, 50)
    x.requires_grad_()
    found = [torch.autograd.grad(build(f"{act}(0.1)")(x), x, grad)[0] for act in (gate, same)]
    assert torch.equal(*found)
    assert not torch.equal(found[0], (x > 0) * grad)


@pytest.mark.parametrize("act", ["nsrelu(0.1)", "up(0.1)"])
def test_local_changes_nothing_with_one_hidden_layer(act):
    gradients = []
    for layer in (nn.Linear, LocalLinear):
        torch.manual_seed(1)
        net = nn.Sequential(layer(20, 100), build(act), nn.Linear(100, 1))
        net(torch.ones(1, 20)).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(map(torch.equal, *gradients))


def test_every_task_has_the_mean_norm_and_flips_one_bit():
    before = None
    for task in tasks():
        mean = torch.cat([task.fixed, task.free.mean(1)], dim=1)
        torch.testing.assert_close(mean.norm(dim=1), torch.full((2,), MEAN_NORM).double())
        bits = task.fixed > 0
        assert before is None or ((bits != before).sum(1) == 1).all()
        before = bits


def test_a_seed_has_the_same_examples_in_any_company():
    for together, alone in zip(tasks(), stream(SEEDS[1:], TASKS, STEPS, MEAN_NORM), strict=True):
        assert torch.equal(together.targets[1], alone.targets[0])
        assert (together.order[1] == alone.order[0]).all()


def test_a_threshold_unit_counts_its_negative_weights():
    teacher = Teacher(np.random.default_rng(0))
    for weight, bias, threshold in zip(
        teacher.weight, teacher.bias, teacher.threshold, strict=True
    ):
        assert threshold == pytest.approx(BETA * 21 - ((weight < 0).sum() + bias / 2))


def test_a_run_that_diverges_has_no_numbers_afterwards():
    rows = pd.DataFrame({"seed": 0, "task": range(1, 31), "not_finite": -1})
    rows[["unfit", "error", "off", "weight_norm"]] = 1.0
    rows.loc[14, "error"], rows.loc[14:, "not_finite"] = np.inf, 140_007
    runs, bins = summarise(rows, 30)
    assert runs["diverged_step"].tolist() == [140_007]
    assert runs["unfit_first"].tolist() == [1.0]
    assert runs["unfit_last"].isna().all()
    assert bins["unfit"].isna().tolist() == [False, True, True]


def test_an_arm_is_saved_as_it_ends_and_not_run_again(tmp_path):
    words = ["run", "--out", str(tmp_path), "--seeds", "2", "--tasks", "12", "--steps", "20"]
    first = CliRunner().invoke(app, [*words, "--arms", "relu, up(0.1)"])
    assert first.exit_code == 0, first.output
    saved = [(tmp_path / name).read_bytes() for name in ("runs.csv", "bins.csv")]
    again = CliRunner().invoke(app, [*words, "--arms", "up(0.1),relu"])
    assert again.stderr.count("done before") == 2
    assert saved == [(tmp_path / name).read_bytes() for name in ("runs.csv", "bins.csv")]
    (tmp_path / "runs.csv").unlink()  # as if it had been killed before it could say: done
    assert CliRunner().invoke(app, [*words, "--arms", "relu,up(0.1)"]).exit_code == 0
    assert saved == [(tmp_path / name).read_bytes() for name in ("runs.csv", "bins.csv")]
    runs = pd.read_csv(tmp_path / "runs.csv")
    assert runs[["arm", "seed"]].drop_duplicates().shape == (4, 2)
    assert runs["unfit_last"].notna().all()
    assert len(pd.read_csv(tmp_path / "bins.csv")) == 2 * 2 * 2
    shown = CliRunner().invoke(app, ["table", "--out", str(tmp_path)])
    assert "| relu | 0 of 2 | - | 2 of 2 |" in shown.stdout


def test_a_slip_is_answered_in_one_line(tmp_path):
    answer = CliRunner().invoke(app, ["run", "--out", str(tmp_path), "--arms", "rleu"])
    assert answer.exit_code == 2
    assert "no 'rleu'" in answer.stderr
