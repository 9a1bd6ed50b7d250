"""Draw cures.png: dead units against the zeros of the others, for each cure.

python docs/figures/cures.py
"""

from pathlib import Path

from matplotlib.figure import Figure

from nsrelu_bench.compare import name_arms
from nsrelu_bench.plot.style import activation_style
from nsrelu_bench.records import CONFIG_COLUMNS, load_runs

STUDY = Path(__file__).parents[2] / "findings" / "cures"
SETTINGS = ["clip_norm", "redo", "batch_norm", "layer_norm", "weight_decay", "optimizer"]

#: Arms by their label, with the text beside the mark and its place in points.
ARMS = {
    "relu": ("ReLU", (7, -4)),
    "leaky_relu(0.1)": ("LeakyReLU", (7, -3)),
    "nsrelu(0.1)": ("NSReLU", (6, 5)),
    "rescue(0.1)": ("rescue", (7, 4)),
    "up(0.03)": ("up, leak 0.03", (7, 0)),
    "relu redo=100": ("", (0, 0)),
    "relu weight_decay=0.0001": ("", (0, 0)),
    "relu/helu(0.05)": ("", (0, 0)),
    "relu/bsilu(1.67)": ("", (0, 0)),
    "relu clip_norm=1": ("", (0, 0)),
    "relu batch_norm": ("ReLU with batch norm", (7, -4)),
    "relu layer_norm": ("ReLU with layer norm", (7, 2)),
    "leaky_relu(0.1) leak_schedule=linear": ("LeakyReLU, leak falls to 0", (-12, -19)),
}


def draw() -> Figure:
    """Draw means over the seeds with their 95 % t intervals, with Adam at 0.001 and 0.01."""
    runs, _ = name_arms(load_runs(STUDY), CONFIG_COLUMNS, SETTINGS)
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for ax, rate in zip(figure.subplots(1, 2), (0.001, 0.01), strict=True):
        for act, (name, place) in ARMS.items():
            arm = runs[(runs["act"] == act) & (runs["lr"] == rate)]
            x, y = (100 * arm[metric] for metric in ("dead_fraction", "living_zero_fraction"))
            half = [2.262 * values.std() / len(values) ** 0.5 for values in (x, y)]
            style = activation_style(act).point
            ax.errorbar(x.mean(), y.mean(), xerr=half[0], yerr=half[1], **style, lw=1)
            if rate > 0.001 or name in BOTH:
                ax.annotate(
                    name, (x.mean(), y.mean()), place, textcoords="offset points", fontsize=8
                )
        if rate == 0.01:
            ax.text(
                31, 70, "ReLU; with HeLU, B-SiLU,\nReDo, L2, clipped", size=8, ha="center", va="top"
            )
        ax.set(xlabel="dead units (%)", title=f"Adam at {rate}", ylim=(-4, 100))
        ax.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("zeros of the other units (%)")
    figure.suptitle("Wanted: no dead unit and many zeros. 5,000 digits, 10 seeds", size=12)
    return figure


#: Named in both panels; the others lie too close in the first.
BOTH = ("ReLU", "LeakyReLU", "NSReLU", "rescue", "ReLU with layer norm")


if __name__ == "__main__":
    draw().savefig(Path(__file__).with_suffix(".png"), dpi=130)
