"""Time and memory of the implementations of NSReLU, compared with F.relu.

Forward and backward are timed together, all forms in turn in one process, in several rounds, so
that a disturbance affects all of them. docs/activations.md has results.
"""

import math
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.benchmark import Timer

from nsrelu_bench.activations import DTYPES, multiplication_trick, nsrelu, nsrelu_
from nsrelu_bench.errors import BenchError, UsageError, lookup
from nsrelu_bench.machine import MIB
from nsrelu_bench.text import align, wrap

Form = Callable[[Tensor], Tensor]

LEAK = 0.1
SIZES = tuple(2**exponent for exponent in (8, 12, 16, 20, 24))
ROUNDS = 7
ROUND_S = 0.03  # of one form in a round, at least one pass
UNITS_PER_EXAMPLE = 128  # per example, or the largest divisor of it that fits


@dataclass(frozen=True)
class Row:
    """One form at one size: medians over the rounds, and ratios of medians.

    Attributes:
        time_s: Of forward and backward.
        spread: Interquartile range of the time over its median.
        vs_relu: Time over that of F.relu, out of place, in the same rounds.
        vs_leaky_relu: The same for F.leaky_relu.
        floor: The least time that the memory allows over the time: five tensors read or written,
            at the speed of a copy. Above 1 in a cache, or in place.
        kept_mib: Memory kept for the backward, with the output and (if kept) the input.
        peak_mib: The most memory used at once, with the input, without the incoming gradient.
    """

    device: str
    dtype: str
    compiled: bool
    size: int
    form: str
    time_s: float
    spread: float
    vs_relu: float
    vs_leaky_relu: float
    floor: float
    kept_mib: float
    peak_mib: float


class ForumFunction(Function):
    """NSReLU as in the forum thread that first asked about it, for comparison.

    The backward multiplies a clone of the gradient where a mask is true, by indexing. At 0 its
    slope is 1, where it is `leak` in all others.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, leak: float) -> Tensor:
        """Return max(x, 0)."""
        ctx.save_for_backward(x)
        ctx.leak = leak
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return the gradient, times `leak` where x < 0."""
        (x,) = ctx.saved_tensors
        result = grad.clone()
        result[x < 0] *= ctx.leak
        return result, None


def _multiply(x: Tensor) -> Tensor:
    return multiplication_trick(x, F.relu, lambda x: torch.where(x > 0, 1.0, LEAK).to(x.dtype))


def run_ops(
    sizes: Iterable[int] = SIZES,
    dtypes: Iterable[str] = ("float32",),
    *,
    compiled: bool = False,
    device: str = "cpu",
    rounds: int = ROUNDS,
    report: Callable[[str], object] | None = None,
) -> list[Row]:
    """Measure every form at every size, eager and, with `compiled`, compiled too.

    Compiling takes some seconds per form and size. `report` is called with a line for every size,
    and for every form that can't be compiled.

    Raises:
        UsageError: A size or a type is not allowed.
        BenchError: There is no such device.
    """
    names = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
    types = [lookup(names, name, "dtype") for name in dtypes]
    sizes = sorted(set(sizes))
    for size in sizes:
        if not 1 <= size <= 2**28:
            raise UsageError(f"size must be from 1 to {2**28}, got {size}")
    if device not in ("cpu", "cuda"):
        raise UsageError(f"device must be cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise BenchError("device: 'cuda' can't be used here")
    rows = []
    for dtype in types:
        for is_compiled in (False, True) if compiled else (False,):
            for size in sizes:
                place = f"{dtype} {size}{' compiled' if is_compiled else ''}"
                if report is not None:
                    report(place.removeprefix("torch."))
                forms = _compile(report) if is_compiled else FORMS
                rows += _measure(forms, size, dtype, device, is_compiled, rounds)
    return rows


def _compile(report: Callable[[str], object] | None) -> dict[str, Form]:
    """Compile every form that can be compiled, and none in place: the compiler decides on that."""
    torch.compiler.reset()  # otherwise earlier sizes would make this one a dynamic shape
    probe, compiled = torch.ones(8, requires_grad=True), {}
    for name, form in FORMS.items():
        if name in FORMS_IN_PLACE:
            continue
        try:
            y = torch.compile(form, fullgraph=True, backend="aot_eager")(probe)
            torch.autograd.grad(y.sum(), probe)
        except Exception as error:  # of many kinds: whatever the compiler can't do
            if report is not None:
                report(f"{name} can't be compiled: {type(error).__name__}")
        else:
            compiled[name] = torch.compile(form, fullgraph=True, dynamic=False)
    return compiled


def _measure(
    forms: dict[str, Form], size: int, dtype: torch.dtype, device: str, compiled: bool, rounds: int
) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    shape = (-1, math.gcd(size, UNITS_PER_EXAMPLE))  # gates look at the units of a batch
    x = torch.randn(size, generator=generator).view(shape).to(device, dtype).requires_grad_()
    grad = torch.randn(size, generator=generator).view(shape).to(device, dtype)
    passes: dict[str, Callable[[], object]] = {
        name: partial(_in_place_pass if name in FORMS_IN_PLACE else _pass, form, x, grad)
        for name, form in forms.items()
    }
    target = torch.empty_like(grad)
    passes["copy"] = partial(target.copy_, grad)
    times = _times(passes, rounds)
    medians = {name: statistics.median(of_form) for name, of_form in times.items()}
    floor = 2.5 * medians["copy"]  # a copy reads one tensor and writes one
    rows = []
    for name, form in forms.items():
        low, _, high = statistics.quantiles(times[name], n=4, method="inclusive")
        kept, peak = _memory(form, x, grad)
        rows.append(
            Row(
                device=device,
                dtype=str(dtype).removeprefix("torch."),
                compiled=compiled,
                size=size,
                form=name,
                time_s=medians[name],
                spread=(high - low) / medians[name],
                vs_relu=medians[name] / medians["relu"],
                vs_leaky_relu=medians[name] / medians["leaky_relu"],
                floor=floor / medians[name],
                kept_mib=kept / MIB,
                peak_mib=peak / MIB,
            )
        )
    return rows


def _pass(form: Form, x: Tensor, grad: Tensor) -> None:
    torch.autograd.grad(form(x), x, grad)


def _in_place_pass(form: Form, x: Tensor, grad: Tensor) -> None:
    """Run a form that overwrites its input, on an alias: a leaf may not be overwritten.

    The form's time includes about a microsecond for the alias.
    """
    alias = torch.ops.aten._unsafe_view(x, x.shape)
    torch.autograd.grad(form(alias), x, grad)


def _times(passes: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time each pass in every round; the order rotates."""
    timers = {
        name: Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
        for name, run in passes.items()
    }
    numbers = {}
    for name, timer in timers.items():
        timer.timeit(1)  # compiles, fills caches, takes memory
        numbers[name] = max(1, int(ROUND_S / max(timer.timeit(2).mean, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in passes}
    order = list(passes)
    for turn in range(rounds):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            if numbers[name] > 1:
                timers[name].timeit(1)  # the allocator is then as this form leaves it
            times[name].append(timers[name].timeit(numbers[name]).mean)
    return times


def _memory(form: Form, x: Tensor, grad: Tensor) -> tuple[int, int]:
    """Return the bytes kept between forward and backward, and the most used at once.

    The activation's input is computed here, as by a layer that does not keep its output.
    """
    if x.device.type == "cuda":
        torch.cuda.synchronize()
        start = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        y = form(x + 0)
        kept = torch.cuda.memory_allocated() - start
        torch.autograd.grad(y, x, grad)
        return kept, torch.cuda.max_memory_allocated() - start
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # no lines on stderr about each profile
    # PyTorch 2.10 warns of every profile that does not add up its events.
    activities = [ProfilerActivity.CPU]
    with profile(activities=activities, profile_memory=True, acc_events=True) as profiler:
        y = form(x + 0)
        with record_function("between"):
            pass
        torch.autograd.grad(y, x, grad)
    return _memory_events(profiler)


def _memory_events(profiler: Any) -> tuple[int, int]:
    """Read allocations from a profile: the bytes in use at "between", and the most at once."""
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    now = kept = peak = 0
    for event in events:
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
        elif event.name() == "between":
            kept = now
    return kept, peak


def format_ops(rows: Sequence[Row], width: int | None = None) -> str:
    """Lay out the times over F.relu's as a table of forms by sizes, with the memory in tensors.

    `width` is that of the terminal, None for a pipe.
    """
    blocks = []
    for device, dtype, compiled in dict.fromkeys((r.device, r.dtype, r.compiled) for r in rows):
        block = [r for r in rows if (r.device, r.dtype, r.compiled) == (device, dtype, compiled)]
        sizes = sorted({row.size for row in block})
        largest = {row.form: row for row in block if row.size == sizes[-1]}
        tensor = sizes[-1] * getattr(torch, dtype).itemsize / MIB
        table = [["form", *map(_size, sizes), "/leaky", "floor", "kept", "peak"]]
        for form, last in largest.items():
            cells = {row.size: row for row in block if row.form == form}
            times = [f"{cells[s].vs_relu:.2f} ±{cells[s].spread / 2:.0%}" for s in sizes]
            memory = [f"{mib / tensor:.1f}" for mib in (last.kept_mib, last.peak_mib)]
            table.append([form, *times, f"{last.vs_leaky_relu:.2f}", f"{last.floor:.0%}", *memory])
        relu = [f"{row.time_s * 1e6:.1f}" for row in block if row.form == "relu"]
        table.append(["relu, us", *relu, "", "", "", ""])
        kind = "compiled" if compiled else "eager"
        head = f"{device}, {dtype}, {kind}: forward and backward, times that of relu"
        blocks += [wrap(head, width), *align(table, width), ""]
    blocks.append(
        wrap(
            "± half the interquartile range; at the largest size: /leaky times that of leaky_relu,"
            " floor share of the copying speed, kept and peak in tensors of that size, the input"
            " counted where it is kept",
            width or 100,
        )
    )
    return "\n".join(blocks)


def save_ops(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write ops.csv and ops.png into a folder, and return their paths."""
    import pandas as pd
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame([asdict(row) for row in rows])
    table.to_csv(folder / "ops.csv", index=False)
    groups = list(table.groupby(["device", "dtype", "compiled"], sort=False))
    figure = Figure(figsize=(5 * len(groups) + 1.5, 3.6), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, ((device, dtype, compiled), block) in zip(panels, groups, strict=True):
        for form, line in block.groupby("form", sort=False):
            dash = ":" if form in FORMS_IN_PLACE else "-"
            axes.plot(line["size"], line["vs_relu"], dash, marker="o", ms=3, label=form)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        kind = "compiled" if compiled else "eager"
        axes.set(xlabel="elements", ylabel="time / relu's", title=f"{device}, {dtype}, {kind}")
    panels[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(folder / "ops.png", dpi=150)
    return [folder / "ops.csv", folder / "ops.png"]


def _size(size: int) -> str:
    exponent = size.bit_length() - 1
    return f"2^{exponent}" if size == 2**exponent else str(size)


#: What is measured: forward and backward of each, with leak 0.1. Each is a separate function,
#: since the compiler limits how often it compiles the same code.
FORMS: dict[str, Form] = {
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, LEAK),
    "native": lambda x: nsrelu(x, LEAK, "native"),
    "detach": lambda x: nsrelu(x, LEAK, "detach"),
    "function": lambda x: nsrelu(x, LEAK, "function"),
    "mismatch": lambda x: nsrelu(x, LEAK, "mismatch"),
    "multiply": _multiply,
    "forum": lambda x: ForumFunction.apply(x, LEAK),
    "up": lambda x: nsrelu(x, LEAK, gate="up"),
    "dead": lambda x: nsrelu(x, LEAK, gate="dead", unit_axis=-1),
    "rescue": lambda x: nsrelu(x, LEAK, gate="rescue", unit_axis=-1),
    "net_rescue": lambda x: nsrelu(x, LEAK, gate="net_rescue", unit_axis=-1),
    "down": lambda x: nsrelu(x, LEAK, gate="down"),
    "relu in place": F.relu_,
    "leaky_relu in place": lambda x: F.leaky_relu_(x, LEAK),
    "native in place": lambda x: nsrelu_(x, LEAK),
    "up in place": lambda x: nsrelu_(x, LEAK, "up"),
    "rescue in place": lambda x: nsrelu_(x, LEAK, "rescue", -1),
}
FORMS_IN_PLACE = tuple(name for name in FORMS if name.endswith("in place"))
