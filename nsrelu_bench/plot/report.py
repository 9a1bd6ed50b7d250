"""Write the report, an HTML page with verdicts, tables, figures and their provenance. No torch."""

import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from nsrelu_bench.compare import (
    ACT_COLUMNS,
    choose_family,
    compare,
    declared,
    format_setting,
    notes,
    sheets_of,
)
from nsrelu_bench.config import FIGURES
from nsrelu_bench.files import write_file
from nsrelu_bench.plot.figure_specs import plan_figure
from nsrelu_bench.plot.figures import to_svg
from nsrelu_bench.plot.grouped_results import GroupedResults, group_results
from nsrelu_bench.plot.panel_data import OUTCOMES, NothingToDrawError, outcomes
from nsrelu_bench.plot.report_summary import answer, split_verdicts
from nsrelu_bench.records import Results, find_studies, load, read_environment

#: The figures in the order of the page.
ORDER = (
    *("tradeoff", "profile", "pairs", "curves", "units", "layers", "leak", "line", "phase"),
    *("cosine", "gradient_depth", "histogram"),
)

#: The most lost runs that are listed; the others are counted.
MAX_LOST = 200


@dataclass(frozen=True)
class Drawing:
    """A figure for wide and for narrow windows, or the reason why it is missing."""

    name: str
    caption: str = ""
    wide: str = ""
    narrow: str = ""
    missing: str = ""


def write_report(
    *paths: Path,
    out: Path,
    baseline: str = "relu",
    tune: Sequence[str] = (),
    metric: Sequence[str] | None = None,
    arms: Sequence[str] = (),
    by: Sequence[str] | None = None,
    where: Sequence[str] = (),
    primary: str | None = None,
    secondary: Sequence[str] | None = None,
    without: Collection[Path] = (),
    all_runs: bool = False,
) -> Path:
    """Write the report on the runs at some paths to one HTML file, and return its path.

    The page needs no network. Its bytes depend only on the runs, the paths and the options. Runs in
    the folders `without` are left out; `all_runs` only adds --all to the command on the page.

    Raises:
        BenchError: There are no runs, they can't be compared, or the file can't be written.
    """
    command = ["nsrelu-bench", "report", *map(str, paths)]
    command += ["--baseline", baseline] * (baseline != "relu") + ["--all"] * all_runs
    options = {"--metric": metric or (), "--arm": arms, "--by": by or ()}
    options |= {"--where": where, "--tune": tune}
    options |= {"--primary": [primary] if primary else [], "--secondary": secondary or ()}
    command += [
        text for flag, values in options.items() for value in values for text in (flag, value)
    ]
    found = [runs for path in paths for runs in find_studies(path).values()]
    folders = {folder.resolve() for runs in found for folder in runs}
    folders -= {folder.resolve() for folder in without}
    questions = declared("question", *paths).values()
    page = render(
        load(*paths, without=without),
        environments=[_environment(folder) for folder in sorted(folders)],
        command=shlex.join(command),
        baseline=baseline,
        tune=tune,
        metric=metric,
        arms=arms,
        by=by,
        where=where,
        family=choose_family(*paths, primary=primary, secondary=secondary),
        question=" ".join(dict.fromkeys(str(text) for text in questions if text)),
    )
    write_file(out, page)
    return out


def render(
    frames: Results,
    *,
    environments: Iterable[Mapping[str, Any]] = (),
    command: str = "nsrelu-bench report",
    baseline: str = "relu",
    tune: Sequence[str] = (),
    metric: Sequence[str] | None = None,
    arms: Sequence[str] = (),
    by: Sequence[str] | None = None,
    where: Sequence[str] = (),
    family: Mapping[str, Any] | None = None,
    question: str | None = None,
) -> str:
    """Return the page as text.

    `environments` are the contents of the runs' env.json files, `command` the command line that
    writes this page, `family` what `declared_family` returns, and `question` that of the study,
    otherwise the project's own. The other options are those of `compare`; figures draw the metrics
    too, and each value of `by` has figures of its own.

    Raises:
        BenchError: The runs can't be compared.
    """
    comparison = compare(
        frames.runs,
        frames.config_columns,
        baseline=baseline,
        metrics=metric,
        arms=arms,
        by=by,
        where=where,
        tune=tune,
        **family or {},
    )
    sections = group_results(frames, arms=arms, where=where, by=by or (), baseline=baseline)
    shown, others = split_verdicts(comparison)
    return _template().render(
        **_describe_runs(sections, frames, list(environments)),
        baseline=comparison.baseline,
        question=question,
        answer=answer(comparison),
        shown=shown,
        others=others,
        sheets=sheets_of(comparison),
        notes=notes(comparison),
        drawings=_drawings(sections, metric or ()),
        command=command,
    )


def _describe_runs(
    sections: Sequence[GroupedResults], frames: Results, environments: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return what the page says about the runs: how many, how they ended, their settings."""
    groups = pd.concat(results.groups for results in sections)
    unreadable = frames.runs[frames.runs["act"].isna()]
    lost = pd.concat([_worrying(groups), unreadable])
    return {
        "title": ", ".join(sorted(set(frames.runs["study"].astype(str)))),
        "counts": _counts(groups),
        "seeds": groups["seed"].nunique(),
        "lost": _lost_runs(lost.head(MAX_LOST)),
        "unlisted": max(len(lost) - MAX_LOST, 0),
        "settings": _settings(groups, frames.config_columns),
        "versions": _versions(environments),
        "made_by": _commands(environments),
    }


def _template() -> Template:
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return pages.get_template("report.html.jinja")


def _worrying(groups: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that did not complete or lost the true gradient; `state` says which."""
    ended = outcomes(groups)
    worrying = ended != "completed"
    if "gradient_lost_step" in groups:
        worrying |= groups["gradient_lost_step"].notna()
    return groups.assign(state=ended)[worrying]


def _drawings(sections: Sequence[GroupedResults], metrics: Sequence[str]) -> list[Drawing]:
    """Draw every figure of every section, each under a name of its own."""
    return [
        _draw(kind, results, metrics, f"{kind}-{number}" if sections[1:] else kind)
        for number, results in enumerate(sections, 1)
        for kind in ORDER
    ]


def _counts(runs: pd.DataFrame) -> str:
    """Count the runs by outcome: "144 runs: 140 completed, 4 diverged"."""
    ended = outcomes(runs)
    counts = [f"{(ended == o).sum()} {o}" for o in OUTCOMES if (ended == o).any()]
    return f"{len(runs)} runs: {', '.join(counts)}"


def _draw(kind: str, results: GroupedResults, metrics: Sequence[str], name: str) -> Drawing:
    section = f"{results.section}: " if results.section else ""
    try:
        spec = plan_figure(kind, results, metrics)
        wide, narrow = (to_svg(spec, f"{name}-{s}", s) for s in ("paper", "phone"))
    except NothingToDrawError as reason:
        return Drawing(name, missing=f"{section}{reason}")
    caption = section + FIGURES[kind]
    return Drawing(name, caption, Markup(wide), Markup(narrow))  # noqa: S704


def _lost_runs(runs: pd.DataFrame) -> list[list[str]]:
    """List runs that did not complete: which, when they ended, and why."""
    columns = ["group", "seed", "state", "diverged_epoch", "diverged_step", "gradient_lost_step"]
    columns += ["error", "run_id"]
    there = runs.reindex(columns=columns)
    return [[format_setting(value) for value in row] for row in there.itertuples(index=False)]


def _settings(runs: pd.DataFrame, config_columns: Sequence[str]) -> list[tuple[str, str, bool]]:
    """List each setting, its values, and whether it has several."""
    found = []
    for column in [c for c in config_columns if c in runs and c not in {*ACT_COLUMNS[1:]}]:
        values = [format_setting(value) for value in dict.fromkeys(runs[column].dropna())]
        if values:
            several = len(values) > 1
            if column == "seed":
                values = [format_setting(value) for value in sorted(runs[column].unique())]
            found.append((column, ", ".join(values), several))
    return sorted(found, key=lambda setting: not setting[2])


#: Entries of env.json about how a run was started, which are not versions.
NOT_VERSIONS = ("command", "packages", "resumed_after", "refused", "started")


def _versions(environments: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """List the versions of the runs; several values if they differ."""
    values: dict[str, dict[str, None]] = {}
    for environment in environments:
        flat = {k: v for k, v in environment.items() if k not in NOT_VERSIONS}
        packages = environment.get("packages")
        for name, value in (flat | (packages if isinstance(packages, dict) else {})).items():
            if value is not None:
                values.setdefault(str(name).replace("_", " "), {})[str(value)] = None
    return [(name, ", ".join(there)) for name, there in values.items()]


def _commands(environments: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """List the command lines of the runs, with the number of runs of each."""
    commands = Counter(_command(environment.get("command")) for environment in environments)
    return [(command, count) for command, count in sorted(commands.items()) if command]


def _command(argv: object) -> str:
    """Write a command line as a person would type it."""
    if not isinstance(argv, list) or not argv:
        return ""
    program, *rest = map(str, argv)
    ours = Path(program).name in ("nsrelu-bench", "__main__.py")
    return shlex.join(["nsrelu-bench", *rest] if ours else ["python", program, *rest])


def _environment(folder: Path) -> dict[str, Any]:
    """Return the content of a run's env.json; empty where it can't be read at the moment."""
    with suppress(OSError):
        return read_environment(folder)
    return {}
