"""Commands that read results: compare, plot, report."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if TYPE_CHECKING:
    import pandas as pd

from nsrelu_bench.cli.app import PROGRAM, command
from nsrelu_bench.cli.options import (
    AllRuns,
    Arm,
    AsJson,
    Baseline,
    By,
    Metric,
    Paths,
    Tune,
    Where,
    make_option,
    terminal_width,
)
from nsrelu_bench.cli.paths import (
    choose_baseline,
    choose_left_out,
    choose_paths,
    print_next,
    write_or_print,
)
from nsrelu_bench.config import FIGURES, METRICS, SETTINGS
from nsrelu_bench.errors import UsageError
from nsrelu_bench.files import shortest_ends
from nsrelu_bench.text import printable, split_names

TABLE_FORMATS = ("table", "csv", "json", "md", "latex")
FIGURE_FORMATS = ("png", "svg", "pdf")
FIGURE_STYLES = ("paper", "column", "talk")

Primary = Annotated[
    str | None,
    make_option(
        *("--primary", "Primary metric, whose differences are shown"),
        *("the study's, or test_accuracy", "NAME"),
        names=METRICS,
    ),
]
Secondary = Annotated[
    list[str] | None,
    make_option(
        *("--secondary", "Other metrics to test, with commas, or none"),
        *("the study's, or zero_fraction,dead_fraction", "NAMES"),
        names=METRICS,
    ),
]
Margin = Annotated[
    list[str] | None,
    make_option(
        *("--margin", "Difference that counts as equivalent, of the primary or a named metric"),
        *("1 point of accuracy, 2 of zeros", "[METRIC=]N"),
    ),
]
Detail = Annotated[
    bool,
    make_option("--detail", "Also tables of failures, medians and chances of improvement"),
]
Columns = Annotated[
    list[str] | None,
    make_option(
        *("--columns", "Columns of the table, with commas, e.g. test_accuracy,diff,p"),
        *("counts, metrics and differences", "NAMES"),
        names=["runs", "diverged", "collapsed", "diff", "pairs", "p", "verdict", *METRICS],
    ),
]
Sort = Annotated[str | None, make_option("--sort", "Metric or setting to sort by", metavar="NAME")]
TableFormat = Annotated[
    str, make_option("--format", "Format of the table", "table", choices=TABLE_FORMATS)
]


@command(
    "compare",
    "nsrelu-bench compare results/quickstart",
    "nsrelu-bench compare results/leaks --baseline 'leaky_relu(0.1)' --tune lr",
    "nsrelu-bench compare results/leaks --baseline init=he",
    "nsrelu-bench compare results/leaks --by lr --format latex --out table.tex",
    "nsrelu-bench compare results/leaks --primary test_loss --margin 0.05",
)
def compare(
    paths: Paths = None,
    baseline: Baseline = "relu",
    metric: Metric = None,
    primary: Primary = None,
    secondary: Secondary = None,
    margin: Margin = None,
    detail: Detail = False,
    arm: Arm = None,
    by: By = None,
    where: Where = None,
    all_runs: AllRuns = False,
    tune: Tune = None,
    columns: Columns = None,
    sort: Sort = None,
    fmt: TableFormat = "table",
    as_json: AsJson = False,
    out: Annotated[
        Path | None, make_option("--out", "File to write", "standard output", "FILE")
    ] = None,
) -> None:
    """Compare activations over seeds, in a table and in words.

    The table has means with 95 % intervals and differences to the baseline, paired by seed.
    """
    from nsrelu_bench.compare import comparison as statistics
    from nsrelu_bench.compare import format_table, metrics_for
    from nsrelu_bench.records import CONFIG_COLUMNS, load_runs

    baseline, chosen = choose_baseline(baseline, choose_paths(paths))
    runs = load_runs(*chosen, without=choose_left_out(chosen, all_runs=all_runs))
    _report_failed(runs)
    family = _family(chosen, primary, split_names(secondary) or None, margin)
    shown, metrics = split_names(columns) or None, split_names(metric) or None
    if shown and not metrics:
        metrics = metrics_for(shown, family["primary"], runs)
    comparison = statistics.compare(
        runs,
        CONFIG_COLUMNS,
        baseline=baseline,
        metrics=metrics,
        **family,
        arms=split_names(arm),
        by=split_names(by) or None,
        where=where or (),
        tune=split_names(tune),
        sort=sort,
    )
    text = format_table(
        comparison,
        "json" if as_json else fmt,
        terminal_width() if out is None else None,
        detail=detail,
        columns=shown,
    )
    write_or_print(text, out)
    if sys.stderr.isatty() and not as_json:
        same = [] if baseline == "relu" else ["--baseline", baseline]
        place = ["--out", "figures"] if baseline.startswith("study=") else []
        print_next(["plot", *chosen, *same, *place], ["report", *chosen, *same])


@command(
    "compare",
    "nsrelu-bench power results/pilot --difference 1",
    "nsrelu-bench power results/pilot --by lr --power 0.9",
    "nsrelu-bench power results/pilot --primary dead_fraction --difference 5",
)
def power(
    paths: Paths = None,
    difference: Annotated[
        float | None,
        make_option(
            *("--difference", "Difference to show, in points where the metric is a percentage"),
            *("the margin", "X"),
        ),
    ] = None,
    primary: Primary = None,
    margin: Margin = None,
    power: Annotated[
        float | None, make_option("--power", "Chance of showing a real difference", "0.8", "X")
    ] = None,
    baseline: Baseline = "relu",
    arm: Arm = None,
    by: By = None,
    where: Where = None,
    all_runs: AllRuns = False,
    as_json: AsJson = False,
) -> None:
    """Estimate how many seeds a study needs, from a pilot."""
    from nsrelu_bench.compare import comparison as statistics
    from nsrelu_bench.compare import format_plan, scale_of
    from nsrelu_bench.records import CONFIG_COLUMNS, load_runs

    baseline, chosen = choose_baseline(baseline, choose_paths(paths))
    family = _family(chosen, primary, None, margin)
    comparison = statistics.compare(
        load_runs(*chosen, without=choose_left_out(chosen, all_runs=all_runs)),
        CONFIG_COLUMNS,
        baseline=baseline,
        **family,
        arms=split_names(arm),
        by=split_names(by) or None,
        where=where or (),
    )
    scale, _ = scale_of(comparison.main_metric)
    text = format_plan(
        comparison,
        difference=None if difference is None else difference / scale,
        power=0.8 if power is None else power,
        as_json=as_json,
        width=terminal_width(),
    )
    print(text, end="")


def _family(
    paths: Sequence[Path],
    primary: str | None,
    secondary: list[str] | None,
    margins: list[str] | None,
) -> dict[str, Any]:
    """Return the family of tests: options win over what the studies declare."""
    from nsrelu_bench.compare import choose_family, read_margins

    given = choose_family(*paths, primary=primary, secondary=secondary)
    return given | {"margins": read_margins(margins or (), given["primary"] or "test_accuracy")}


Kind = Annotated[
    list[str] | None,
    make_option(
        *("--kind", f"Figures, with commas: {', '.join(FIGURES)}", "all", "NAMES"), names=FIGURES
    ),
]
XSetting = Annotated[
    str | None,
    make_option(
        *("--x", "Numeric setting for the figure line, such as lr", "the first that varies"),
        metavar="NAME",
        names=SETTINGS,
    ),
]
Formats = Annotated[
    str,
    make_option(
        *("--format", f"File formats with commas: {', '.join(FIGURE_FORMATS)}", "png,svg", "NAMES"),
        names=FIGURE_FORMATS,
    ),
]
FigureStyle = Annotated[
    str, make_option("--style", "Size and fonts", "paper", choices=FIGURE_STYLES)
]


@command(
    "compare",
    "nsrelu-bench plot results/quickstart",
    "nsrelu-bench plot results/quickstart --kind curves,tradeoff --format pdf",
    "nsrelu-bench plot results/leaks --kind line --x lr --metric dead_fraction",
)
def plot(
    paths: Paths = None,
    kind: Kind = None,
    metric: Metric = None,
    x: XSetting = None,
    arm: Arm = None,
    by: By = None,
    where: Where = None,
    all_runs: AllRuns = False,
    baseline: Baseline = "relu",
    fmt: Formats = "png,svg",
    style: FigureStyle = "paper",
    out: Annotated[
        Path | None, make_option("--out", "Folder to write", "figures/ next to the runs", "DIR")
    ] = None,
) -> None:
    """Draw the figures of each study.

    A figure that has no data is reported and left out.
    """
    from nsrelu_bench.plot import draw_all
    from nsrelu_bench.records import load

    baseline, chosen = choose_baseline(baseline, choose_paths(paths))
    left_out = choose_left_out(chosen, all_runs=all_runs)
    for studies, folder in _drawn_together(chosen, out, together=baseline.startswith("study=")):
        frames = load(*studies, without=left_out)
        _report_failed(frames.runs)
        drawn = draw_all(
            frames,
            folder,
            kinds=split_names(kind) or None,
            formats=split_names(fmt),
            style=style,
            metric=split_names(metric) or None,
            tell=lambda line: print(line, file=sys.stderr),
            where=where or (),
            arms=split_names(arm),
            by=split_names(by),
            baseline=baseline,
            x=x,
        )
        for path in drawn:
            print(printable(str(path)))


def _drawn_together(
    paths: Sequence[Path], out: Path | None, *, together: bool
) -> list[tuple[list[Path], Path]]:
    """Return the studies of each set of figures and its folder: all `together`, or one by one."""
    from nsrelu_bench.records import find_drawable

    if together:
        if out is None:
            raise UsageError("--out: needed where figures are of several studies together")
        return [(list(paths), out)]
    found = [study for path in paths for study in find_drawable(path)]
    studies = list({study.resolve(): study for study in found}.values())
    if out is None:
        return [([study], study / "figures") for study in studies]
    ends = shortest_ends(studies)
    return [
        ([study], out / end if studies[1:] else out)
        for study, end in zip(studies, ends, strict=True)
    ]


@command(
    "compare",
    "nsrelu-bench report results/quickstart",
    "nsrelu-bench report results/leaks --tune lr --out leaks.html",
    "nsrelu-bench report results/relu results/nsrelu --baseline relu",
)
def report(
    paths: Paths = None,
    metric: Metric = None,
    primary: Primary = None,
    secondary: Secondary = None,
    arm: Arm = None,
    by: By = None,
    where: Where = None,
    all_runs: AllRuns = False,
    baseline: Baseline = "relu",
    tune: Tune = None,
    out: Annotated[
        Path | None, make_option("--out", "File to write", "report.html next to the runs", "FILE")
    ] = None,
) -> None:
    """Write an HTML page of verdicts, tables and figures.

    The page needs no other file and no network.
    """
    from nsrelu_bench.plot import write_report

    baseline, chosen = choose_baseline(baseline, choose_paths(paths))
    page = write_report(
        *chosen,
        out=out or chosen[0] / "report.html",
        baseline=baseline,
        tune=split_names(tune),
        metric=split_names(metric) or None,
        arms=split_names(arm),
        by=split_names(by) or None,
        where=where or (),
        primary=primary,
        secondary=split_names(secondary) or None,
        without=choose_left_out(chosen, all_runs=all_runs),
        all_runs=all_runs,
    )
    print(printable(str(page)))


def _report_failed(runs: "pd.DataFrame", most: int = 5) -> None:
    """Report the runs without numbers, because they failed or their files are damaged."""
    failed = runs[runs["state"] == "failed"]
    for study, run_id, error in failed[["study", "run_id", "error"]].head(most).to_numpy():
        print(f"{PROGRAM}: {study}/{run_id} failed: {error}", file=sys.stderr)
    if len(failed) > most:
        print(f"{PROGRAM}: {len(failed) - most} other runs failed", file=sys.stderr)
