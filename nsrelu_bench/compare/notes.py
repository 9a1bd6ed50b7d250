"""Write the notes below a comparison's tables: how its numbers were computed."""

import math

from nsrelu_bench.compare.columns import column_name, usual_columns
from nsrelu_bench.compare.comparison import Comparison
from nsrelu_bench.compare.grouping import COUNTED_STATES
from nsrelu_bench.compare.labels import RUN_COUNTS, label, scale_of
from nsrelu_bench.compare.sign_flips import DRAWN, MAX_EXACT, least_p
from nsrelu_bench.compare.statistics import ALPHA, LEAST_SEEDS, LEAST_VALUES, POWER
from nsrelu_bench.config import CLASSES, METRICS, TEST_IMAGES
from nsrelu_bench.text import format_percent


def notes(comparison: Comparison) -> list[str]:
    """Return the notes below a comparison's tables, one per line."""
    return [
        *_legend(comparison),
        *_averages(comparison),
        *_failures(comparison),
        *_tests(comparison),
        *_other_noise(comparison),
        *_cautions(comparison),
    ]


def _legend(comparison: Comparison) -> list[str]:
    """Explain each count and metric."""
    counts = {key: RUN_COUNTS[key] for key in usual_columns(comparison) if key in RUN_COUNTS}
    metrics = {column_name(name): _definition(name) for name in comparison.metrics}
    return [f"{name}: {text}." for name, text in (counts | metrics).items() if text]


def _definition(metric: str) -> str:
    """Return the description of a metric, without its cost; empty for an unknown one."""
    text = METRICS.get(metric, "").partition(" (")[0]
    units = metric.removesuffix("fraction") + "units"
    return f"share of {METRICS[units]}" if text.endswith("over units") else text


def _averages(comparison: Comparison) -> list[str]:
    rows = comparison.rows
    groups = rows.drop_duplicates(["section", "group"])
    left_out = [
        f"{groups[state].sum()} {state}" for state in COUNTED_STATES[1:] if groups[state].sum()
    ]
    lines = [
        f"Mean ± half-width of the {comparison.confidence:.0%} t interval over "
        f"{groups['completed'].sum()} of {groups['runs'].sum()} runs"
        + (f"; left out: {', '.join(left_out)}. " if left_out else ", all completed. ")
        + f"[low, high] where 0 or 100 % cuts it off; the values where there are fewer than "
        f"{LEAST_VALUES}."
    ]
    if "sd_rounding" not in rows:
        lines += [
            f"{metric}: {part['n'].sum()} of the {part['completed'].sum()} completed runs of "
            f"{len(part)} groups have a value."
            for metric, part in rows[rows["n"] < rows["completed"]].groupby("metric", sort=False)
        ]
    if comparison.tuned:
        lines.append(
            f"{', '.join(comparison.tuned)}: chosen for each activation by the fewest runs that "
            "failed to train, then by the best mean validation accuracy, never by the test set."
        )
    return lines


def _failures(comparison: Comparison) -> list[str]:
    rows = comparison.rows
    if not rows["failed_to_train"].any():
        return []
    levels = [
        " or ".join(f"{100 * level:.3g} %" for level in found)
        + f" of {name}" * (name not in CLASSES)
        for name, found in comparison.chance.items()
    ]
    return [
        "Failed to train: diverged, or collapsed (finite, but no better than guessing, or with "
        "less than half of its best validation accuracy). In differences and verdicts a diverged "
        f"run has the accuracy of chance ({', '.join(dict.fromkeys(levels))}), and no other metric."
    ]


def _tests(comparison: Comparison) -> list[str]:
    rows, family, baseline = comparison.rows, comparison.family, comparison.baseline
    if not rows["pairs"].any():
        return [f"vs {baseline}: paired by settings and seed; there is no pair."]
    same = "" if comparison.baseline_setting == "act" else "with the same activation and "
    lines = [
        f"vs {baseline}: paired {same and same + 'settings '}by seed; the interval inverts the"
        " sign-flip test of a single difference."
    ]
    groups = rows[~rows["is_baseline"]].drop_duplicates(["section", "group"])
    alone = len(groups) - len(comparison.compared.drop_duplicates(["section", "group"]))
    if alone:
        lines.append(
            f"{alone} of {len(groups)} other groups have no run of {baseline} to pair with."
        )
    if comparison.tests:
        secondary = ", ".join(family.secondary) or "none"
        each = [f"{study} {count}" for study, count in comparison.tests_of.items() if count]
        of_each = f"the {comparison.tests} tests of the study"
        if len(each) > 1:
            of_each = f"the tests of its study ({', '.join(each)})"
        lines += [
            f"p is adjusted for {of_each}, shown or not: primary {family.primary}, secondary "
            f"{secondary}; step-down maxT over joint sign flips of the seeds, all of them "
            f"up to {MAX_EXACT} seeds, {DRAWN:,} with more.",
            f"Verdict: what an adjusted p below {ALPHA} shows; ~N seeds: how many would show it "
            f"with a power of {POWER:.0%}, if the true differences are those observed.",
        ]
    fewest = int(rows.loc[rows["pairs"] > 0, "pairs"].min())
    if fewest < LEAST_SEEDS:
        lines.append(
            f"With fewer than {LEAST_SEEDS} pairs there is neither a test nor an interval: with "
            f"{LEAST_SEEDS - 1} pairs p can't go below {least_p(LEAST_SEEDS - 1)}."
        )
    return lines


def _other_noise(comparison: Comparison) -> list[str]:
    rows, lines = comparison.rows, []
    accuracy = rows.loc[rows["metric"] == "test_accuracy", "mean"].median()
    for name in comparison.datasets:
        if name in TEST_IMAGES and not math.isnan(accuracy):
            images = TEST_IMAGES[name]
            error = math.sqrt(accuracy * (1 - accuracy) / images)
            lines.append(
                f"{name}: all seeds share its {images:,} test images, a sample that gives an "
                f"accuracy of {format_percent(accuracy)} a standard error of {100 * error:.2g} pp."
            )
    if "sd_rounding" in rows:
        part = rows[rows["metric"] == comparison.main_metric]
        scale, unit = scale_of(comparison.main_metric)
        lines.append(
            f"{label(comparison.main_metric)}: standard deviation between seeds "
            f"{scale * part['sd_seed'].median():.2g}{unit}, between replicates of a seed, which "
            f"differ in rounding alone, {scale * part['sd_rounding'].median():.2g}{unit} (medians "
            "over groups)."
        )
    if comparison.environment:
        parts = (f"{name} {value}" for name, value in comparison.environment.items())
        lines.append(f"Computed with {', '.join(parts)}.")
    return lines


def _cautions(comparison: Comparison) -> list[str]:
    lines = [
        f"Careful: these runs differ in {name} ({' and '.join(values)}), which changes numbers."
        for name, values in comparison.mixed.items()
    ]
    copies = comparison.copies if comparison.baseline_setting != "study" else {}
    lines += [
        f"Careful: {count} runs of {study} train the same configuration and seed as runs of "
        f"{other}; they are not additional evidence."
        for (study, other), count in copies.items()
    ]
    return lines
