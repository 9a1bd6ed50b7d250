import json
import math
from functools import partial

import pandas as pd
import pytest
import torch
from helpers.command_line import ask

from nsrelu_bench.activations import DTYPES, IMPLS, nsrelu
from nsrelu_bench.config import GATES
from nsrelu_bench.errors import BenchError, UsageError
from nsrelu_bench.tools import ops
from nsrelu_bench.tools.ops import (
    FORMS,
    FORMS_IN_PLACE,
    Row,
    format_ops,
    run_ops,
    save_ops,
)

pytestmark = pytest.mark.xdist_group("ops")  # what they share is computed once


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(ops, "ROUND_S", 1e-4)


@pytest.fixture(scope="module")
def rows():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "ROUND_S", 1e-4)
        return run_ops([64, 4096], ["float32", "bfloat16"], rounds=3)


def gradient(form, x, grad):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(form(x + 0), x, grad)[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_forums_function_differs_only_at_0(dtype):
    x = torch.tensor([-2.0, -1e-3, 0.0, -0.0, 1e-3, 2.0], dtype=dtype)
    grad = torch.linspace(-3, 3, 6).to(dtype)
    assert torch.equal(FORMS["forum"](x), nsrelu(x))
    theirs, ours = (gradient(form, x, grad) for form in (FORMS["forum"], nsrelu))
    assert torch.equal(theirs[x != 0], ours[x != 0])
    assert torch.equal(theirs[x == 0], grad[x == 0])


@pytest.mark.parametrize("name", [name for name in FORMS if "relu" not in name.split()[0]])
def test_what_is_measured_is_nsrelu(name):
    x, grad = torch.linspace(-3, 3, 60).view(10, 6), torch.linspace(-2, 1, 60).view(10, 6)
    x[:, 0] = -1
    gate = name.split()[0] if name.split()[0] in GATES else "always"
    assert torch.equal(FORMS[name](x.clone()), x.relu())
    expected = gradient(partial(nsrelu, gate=gate), x, grad)
    assert torch.equal(gradient(FORMS[name], x, grad), expected)


def test_every_implementation_and_its_rivals_are_measured():
    gates = set(GATES) - {"always"}
    assert {*IMPLS, *gates, "relu", "leaky_relu", "forum", *FORMS_IN_PLACE} <= FORMS.keys()


def test_every_form_has_a_row_for_every_size_and_type(rows):
    expected = [
        (dtype, size, form)
        for dtype in ("float32", "bfloat16")
        for size in (64, 4096)
        for form in FORMS
    ]
    assert [(row.dtype, row.size, row.form) for row in rows] == expected


def test_the_ratios_are_of_the_times(rows):
    for row in rows:
        same = [r for r in rows if (r.dtype, r.size) == (row.dtype, row.size)]
        (relu,) = [r for r in same if r.form == "relu"]
        (leaky,) = [r for r in same if r.form == "leaky_relu"]
        assert row.vs_relu == row.time_s / relu.time_s
        assert row.vs_leaky_relu == row.time_s / leaky.time_s
        assert 0 < row.time_s < 1
        assert row.spread >= 0
        assert row.floor > 0


@pytest.mark.parametrize(
    ("form", "kept"),
    {
        "relu": 1,
        "leaky_relu": 2,
        "native": 2,
        "detach": 2,
        "function": 1,
        "mismatch": 2,
        "forum": 2,
        "relu in place": 1,
        "leaky_relu in place": 1,
        "native in place": 1,
        "up": 1,
        "dead": 1,
        "rescue": 1,
        "net_rescue": 1,
        "down": 1,
        "rescue in place": 1,
    }.items(),
)
def test_what_is_kept_for_the_backward_is_measured_as_tensors(rows, form, kept):
    for row in rows:
        if row.form == form and row.size == 4096:
            tensor = row.size * getattr(torch, row.dtype).itemsize / 2**20
            assert row.kept_mib / tensor == pytest.approx(kept, abs=0.02)
            assert row.peak_mib >= row.kept_mib


def test_medians_and_spread_are_of_the_rounds(monkeypatch):
    times = [5.0, 1.0, 2.0, 3.0, 4.0]
    monkeypatch.setattr(ops, "_times", lambda passes, _: dict.fromkeys(passes, times))
    monkeypatch.setattr(ops, "_memory", lambda *_: (0, 0))
    row = run_ops([8])[0]
    assert (row.time_s, row.spread, row.vs_relu) == (3, 2 / 3, 1)
    assert row.floor == 2.5


def test_all_forms_take_turns_in_every_round(monkeypatch):
    calls = []

    def record(name):
        calls.append(name)

    ops._times({name: partial(record, name) for name in "abc"}, rounds=3)
    order = [a for a, b in zip(calls, [*calls[1:], ""], strict=True) if a != b]
    # Alone at first, to warm up and count; then in turn, every round from another on.
    assert "".join(order).endswith("abcbcacab")


@pytest.mark.covers
@pytest.mark.slow
def test_compiled_forms_are_measured_or_say_why_not(monkeypatch):
    # With the tracing alone: the compiler itself takes seconds a form.
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **k: compile_(f, **k | {"backend": "eager"}))
    monkeypatch.setitem(FORMS, "broken", lambda x: (torch._dynamo.graph_break(), x)[1] * 1)
    reported = []
    rows = run_ops([8], compiled=True, rounds=2, report=reported.append)
    compiled = [row.form for row in rows if row.compiled]
    assert set(IMPLS) < set(compiled)
    assert not set(FORMS_IN_PLACE) & set(compiled)
    assert "broken" not in compiled
    assert [line for line in reported if line.startswith("broken can't be compiled: ")]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"sizes": [0]}, UsageError, "size must be from 1 to 268435456, got 0"),
        ({"dtypes": ["int8"]}, UsageError, "unknown dtype 'int8'; "),
        ({"device": "tpu"}, UsageError, "device must be cpu or cuda, got 'tpu'"),
    ],
)
def test_what_cannot_be_measured_is_one_line(settings, error, message):
    with pytest.raises(error) as caught:
        run_ops(**settings)
    assert str(caught.value).startswith(message)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_one_line():
    with pytest.raises(BenchError, match=r"^device: 'cuda' can't be used here$"):
        run_ops(device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_measured_too():
    for row in run_ops([2**16], device="cuda", rounds=2):
        assert row.time_s > 0
        assert row.kept_mib >= 0.25


def test_the_table_shows_ratios_by_size_and_memory_in_tensors():
    def row(form, size, time_s, tensors):
        mib = tensors * size * 4 / 2**20
        ratio = time_s / 1e-6
        return Row("cpu", "float32", False, size, form, time_s, 0.1, ratio, ratio, 0.5, mib, mib)

    rows = [row("relu", 256, 1e-6, 1), row("native", 256, 1.1e-6, 2), row("relu", 300, 1e-6, 1)]
    assert format_ops([*rows, row("native", 300, 1.2e-6, 2)]).splitlines()[:4] == [
        "cpu, float32, eager: forward and backward, times that of relu",
        "form      2^8       300       /leaky  floor  kept  peak",
        "relu      1.00 ±5%  1.00 ±5%  1.00    50%    1.0   1.0",
        "native    1.10 ±5%  1.20 ±5%  1.20    50%    2.0   2.0",
    ]


def test_what_was_measured_is_saved_as_table_and_figure(rows, tmp_path):
    table, figure = save_ops(rows, tmp_path / "new")
    frame = pd.read_csv(table)
    assert len(frame) == len(rows)
    assert frame.loc[0, "form"] == "relu"
    assert math.isclose(frame["time_s"][3], rows[3].time_s)
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_the_command_keeps_messages_off_stdout(tmp_path, capfd):
    answer = ask("ops", "--sizes", "4,5", "--json", cwd=tmp_path)
    assert {row["size"] for row in json.loads(answer.out)} == {16, 32}
    assert (tmp_path / "results/ops/ops.csv").exists()
    assert "float32 32" in answer.err
    assert capfd.readouterr() == ("", "")  # nor lines of the profiler, which is not Python
