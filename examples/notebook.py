"""From training to a figure, as in a notebook.

Run the cells in an editor that knows `# %%`, or all of them with `python examples/notebook.py`,
in some ten seconds. What they leave lies in results/notebook.
"""

# %%
from pathlib import Path

from matplotlib.figure import Figure

from nsrelu_bench import RunConfig, load
from nsrelu_bench.compare import name_groups
from nsrelu_bench.compare.comparison import compare
from nsrelu_bench.compare.verdicts import verdicts
from nsrelu_bench.plot.figures import draw_all
from nsrelu_bench.plot.panels import curves, tradeoff
from nsrelu_bench.plot.report import write_report
from nsrelu_bench.sweep.scheduler import run_all

# %% Train three activations with four seeds each; runs that are done are kept.
STUDY = Path("results/notebook")
configs = [
    RunConfig(act=act, dataset="digits", width=32, depth=3, lr=0.05, epochs=3, seed=seed)
    for act in ("relu", "nsrelu(0.1)", "leaky_relu(0.1)")
    for seed in range(4)
]
for _ in run_all(configs, STUDY):
    pass

# %% Tidy frames: `runs` has a row a run, `metrics` a row an epoch, `layers` a row a site too.
frames = load(STUDY)
print(frames.runs[["act", "seed", "state", "test_accuracy", "dead_fraction"]])
print(frames.metrics.groupby("epoch")["zero_fraction"].mean())

# %% Compare with relu, paired by seed: the numbers, and what they say in words.
comparison = compare(frames.runs, frames.config_columns)
print(comparison.rows[["group", "metric", "mean", "low", "high", "diff", "p", "p_holm"]])
print("\n".join(verdicts(comparison)))

# %% Group the runs that differ in nothing but the seed, once; draw one panel. A notebook shows the
# figure of a cell's last line.
groups = name_groups(frames.runs, frames.config_columns)
axes = curves(groups, frames.metrics, metric="dead_units")
axes.figure  # noqa: B018

# %% Panels on axes of your own, with pyplot or without.
figure = Figure(figsize=(7, 3), layout="constrained")
left, right = figure.subplots(1, 2)
curves(groups, frames.metrics, ax=left)
tradeoff(groups, ax=right)
figure.savefig(STUDY / "mine.png", dpi=150)

# %% All figures, and the report.
draw_all(frames, STUDY / "figures", formats=["svg"])
print(write_report(STUDY, out=STUDY / "report.html"))
