"""The regression of examples/ on targets of small variance: side by side is the same as alone."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from examples.target_variance import (
    BATCH,
    EXAMPLES,
    FOUR,
    VARIANCES,
    app,
    make_data,
    make_layers,
    train,
)
from nsrelu_bench.activations import build

SEEDS, STEPS = 2, 30


def trained_alone(act, depth, optimizer, lr, momentum, network):
    """One network of a setting as a module of its own; returns its error and its dead units."""
    variance, seed = VARIANCES[network // SEEDS], network % SEEDS
    modules = []
    for weight, bias in make_layers(depth, SEEDS):
        linear = nn.Linear(*weight.shape[1:])
        with torch.no_grad():
            linear.weight.copy_(weight[network].T)
            linear.bias.copy_(bias[network, 0])
        modules += [linear, build(act)]
    net = nn.Sequential(*modules[:-1])
    if optimizer == "sgd":
        step = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum)
    else:
        step = torch.optim.Adam(net.parameters(), lr=lr, betas=(momentum, 0.999))
    x, y = (part[seed] for part in make_data(SEEDS))
    for batch in np.random.default_rng([seed, 2]).integers(EXAMPLES, size=(STEPS, BATCH)):
        step.zero_grad()
        nn.functional.mse_loss(net(x[batch])[:, 0], y[batch] * variance**0.5).backward()
        step.step()
    with torch.no_grad():
        posts = [net[: 2 * layer + 2](x) for layer in range(depth)]
        dead = torch.cat([(post == 0).all(0) for post in posts]).double().mean()
        return ((net(x)[:, 0] - y * variance**0.5) ** 2).mean().item(), dead.item()


@pytest.mark.slow
@pytest.mark.parametrize("act", FOUR)
@pytest.mark.parametrize(
    ("depth", "optimizer", "lr", "momentum"), [(1, "sgd", 0.01, 0.9), (3, "adam", 0.01, 0.0)]
)
def test_networks_side_by_side_train_as_alone(act, depth, optimizer, lr, momentum):
    rows = train(act, depth, optimizer, lr, momentum, SEEDS, STEPS)
    assert len(rows) == len(VARIANCES) * SEEDS
    for network in (0, 5, len(rows) - 1):
        error, dead = trained_alone(act, depth, optimizer, lr, momentum, network)
        assert rows["error"][network] == pytest.approx(error, rel=1e-3)
        assert rows["dead"][network] == pytest.approx(dead, abs=0.01)
        assert rows["variance"][network] == VARIANCES[network // SEEDS]


def test_a_network_that_diverges_is_counted_and_has_no_numbers():
    rows = train("relu", 1, "sgd", 1e30, 0.9, SEEDS, 3)
    assert rows["diverged"].all()
    assert rows[["error", "dead"]].isna().all(axis=None)


@pytest.mark.slow
def test_settings_are_saved_one_by_one_and_shown(tmp_path, monkeypatch):
    monkeypatch.setattr("examples.target_variance.OPTIMIZERS_AND_RATES", (("adam", 0.01),))
    words = ["run", "--out", str(tmp_path), "--seeds", "5", "--steps", "1"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert len(pd.read_csv(tmp_path / "runs.csv")) == 4 * 2 * 2 * 5 * 5
    before = (tmp_path / "runs.csv").read_bytes()
    again = CliRunner().invoke(app, words)
    assert again.stderr == ""
    assert before == (tmp_path / "runs.csv").read_bytes()
    shown = CliRunner().invoke(app, ["table", "--out", str(tmp_path)])
    assert shown.stdout.count("**") == 8
    assert "| V5: rescue(0.1) less relu" in shown.stdout
