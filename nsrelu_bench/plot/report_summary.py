"""Write the beginning of a report: a sentence that answers the question, and the verdicts."""

import pandas as pd

from nsrelu_bench.compare import Comparison, label, verdict_clauses
from nsrelu_bench.text import join_words

Verdict = tuple[str, list[str]]


def answer(comparison: Comparison) -> str:
    """Return a sentence that says how many groups differ from the baseline in each tested metric.

    It names the groups that differ in the main metric. Like the verdicts, it depends on the
    adjusted p values.
    """
    rows, baseline = comparison.compared, comparison.baseline
    rows = rows[rows["verdict"] != ""]
    main = rows[rows["metric"] == comparison.main_metric]
    if main.empty:
        return f"No comparison with {baseline} has been tested."
    others = [m for m in comparison.family.metrics if m != comparison.main_metric]
    clauses = [
        f"{label(metric)}: {_outcome(rows[rows['metric'] == metric], named=False)}"
        for metric in others
        if (rows["metric"] == metric).any()
    ]
    several = len(main) > 1
    first = f"{label(comparison.main_metric)} is {_outcome(main, named=True)}"
    return (
        f"Of {len(main)} comparison{'s' * several} with {baseline}, "
        f"{'; '.join([first, *clauses])}.{_failures(comparison)}"
    )


def _outcome(rows: pd.DataFrame, *, named: bool) -> str:
    """Return in how many groups a metric is higher, lower, equivalent or none of these."""
    words = rows["verdict"].str.split(", ").str[0].str.partition(":")[0]
    words = words.replace("not shown", "not shown to differ")
    parts = []
    order = {"higher": 0, "lower": 1, "not shown to differ": 3}
    for word in dict.fromkeys(sorted(words, key=lambda word: order.get(word, 2))):
        names = list(rows.loc[words == word, "group"])
        listed = named and word in DIFFERENCES and len(names) <= MAX_NAMED
        parts.append(f"{word} in {len(names)}" + (f" ({', '.join(names)})" if listed else ""))
    return join_words(parts)


#: Words for a difference, and the most groups that a sentence names.
DIFFERENCES = ("higher", "lower")
MAX_NAMED = 4


def split_verdicts(comparison: Comparison) -> tuple[list[Verdict], list[Verdict]]:
    """Return the verdicts that show a difference, and the others."""
    parts = comparison.compared.groupby(["section", "group"], sort=False)
    differs = [part["verdict"].str.startswith(DIFFERENCES).any() for _, part in parts]
    shown, others = list[Verdict](), list[Verdict]()
    for verdict, differ in zip(verdict_clauses(comparison), differs, strict=True):
        (shown if differ else others).append(verdict)
    return shown, others


def _failures(comparison: Comparison) -> str:
    """Return how many runs failed to train, if any did."""
    groups = comparison.rows.drop_duplicates(["section", "group"])
    failed = int((groups["diverged"] + groups["collapsed"]).sum())
    finished = int((groups["completed"] + groups["diverged"]).sum())
    return f" {failed} of {finished} runs diverged or collapsed." if failed else ""
