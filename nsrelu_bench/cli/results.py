"""Commands that read results: compare, plot, report."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import pandas as pd

from nsrelu_bench.cli.app import app
from nsrelu_bench.cli.options import KINDS, AsJson, Paths, make_option, split_names, terminal_width


@app.command()
def compare(
    paths: Paths = None,
    baseline: Annotated[
        str, make_option("--baseline", "activation to compare with", "relu")
    ] = "relu",
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", help="metrics to show, with commas; list metrics names them"),
    ] = None,
    by: Annotated[
        list[str] | None, typer.Option("--by", help="settings with a table for each value")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", help="only such runs, and the baseline, e.g. act=nsrelu"),
    ] = None,
    tune: Annotated[
        list[str] | None, typer.Option("--tune", help="setting to choose by validation accuracy")
    ] = None,
    sort: Annotated[str | None, typer.Option("--sort", help="metric or setting")] = None,
    fmt: Annotated[
        str, typer.Option("--format", help="table, csv, json, md or latex", show_default="table")
    ] = "table",
    as_json: AsJson = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="file", show_default="standard output")
    ] = None,
) -> None:
    """Compare activations: means over seeds, paired differences to the baseline, verdicts."""
    from nsrelu_bench.compare import comparison as statistics
    from nsrelu_bench.compare import format_table
    from nsrelu_bench.files import write_text
    from nsrelu_bench.records import CONFIG_COLUMNS, load_runs

    runs = load_runs(*paths or [Path("results")])
    _tell_failed(runs)
    comparison = statistics.compare(
        runs,
        CONFIG_COLUMNS,
        baseline=baseline,
        metrics=split_names(metric),
        by=split_names(by),
        where=where or (),
        tune=split_names(tune) or (),
        sort=sort,
    )
    text = format_table(
        comparison, "json" if as_json else fmt, terminal_width() if out is None else None
    )
    if out is None:
        print(text, end="")
    else:
        write_text(out, text)
        print(out)


@app.command()
def plot(
    paths: Paths = None,
    kind: Annotated[
        list[str] | None,
        typer.Option("--kind", help=f"with commas, of {', '.join(KINDS)}", show_default="all"),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", help="metric in place of a figure's own; list metrics names them"),
    ] = None,
    fmt: Annotated[
        str,
        typer.Option("--format", help="png, svg and pdf, with commas", show_default="png,svg"),
    ] = "png,svg",
    style: Annotated[
        str, typer.Option("--style", help="paper, column or talk", show_default="paper")
    ] = "paper",
    out: Annotated[
        Path | None, typer.Option("--out", help="folder", show_default="figures/ beside the runs")
    ] = None,
) -> None:
    """Draw the figures of each study: curves over epochs, accuracy against sparsity and others."""
    from nsrelu_bench.plot import draw_all
    from nsrelu_bench.records import find_drawable, load

    studies = [study for path in paths or [Path("results")] for study in find_drawable(path)]
    for study in studies:
        frames = load(study)
        _tell_failed(frames.runs)
        drawn = draw_all(
            frames,
            study / "figures" if out is None else out / study.name if studies[1:] else out,
            kinds=split_names(kind),
            formats=fmt.split(","),
            style=style,
            metric=metric,
            tell=lambda line: print(line, file=sys.stderr),
        )
        print(*drawn, sep="\n", end="\n" * bool(drawn))


@app.command()
def report(
    paths: Paths = None,
    baseline: Annotated[
        str, make_option("--baseline", "activation to compare with", "relu")
    ] = "relu",
    tune: Annotated[
        list[str] | None, typer.Option("--tune", help="setting to choose by validation accuracy")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="file", show_default="report.html beside the runs"),
    ] = None,
) -> None:
    """Write one HTML page that needs nothing else: verdicts, tables, figures, what made them."""
    from nsrelu_bench.plot import write_report

    chosen = paths or [Path("results")]
    print(
        write_report(
            *chosen,
            out=out or chosen[0] / "report.html",
            baseline=baseline,
            tune=split_names(tune) or (),
        )
    )


def _tell_failed(runs: "pd.DataFrame", most: int = 5) -> None:
    """Say which runs have no numbers because they failed, or their files are damaged."""
    failed = runs[runs["state"] == "failed"]
    for study, run_id, error in failed[["study", "run_id", "error"]].head(most).to_numpy():
        print(f"nsrelu-bench: {study}/{run_id} failed: {error}", file=sys.stderr)
    if len(failed) > most:
        print(f"nsrelu-bench: {len(failed) - most} other runs failed", file=sys.stderr)
