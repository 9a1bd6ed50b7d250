"""The names that a configuration can use, with descriptions and defaults; no torch."""

import re
from collections.abc import Iterable

from nsrelu_bench.errors import unknown

#: A part of the user's own: a module's dotted name and a name in it.
PLUGIN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
PLUGIN_FORM = "package.module:name"
#: A folder of the user's images.
FOLDER_FORM = "folder:PATH"


def is_own(name: str) -> bool:
    """Return whether a name has the form of a user's own part, ``package.module:name``."""
    return PLUGIN.fullmatch(name) is not None


def check_name(name: str, known: Iterable[str], kind: str) -> str:
    """Return the name of a known `kind` of part, or of one of the user's own.

    Raises:
        UsageError: It is neither.
    """
    choices = list(known)
    if name not in choices and not is_own(name):
        raise unknown(name, [*choices, PLUGIN_FORM], kind)
    return name


#: Models with their default width and depth; the code is in models.py.
MODEL_SIZES: dict[str, dict[str, int]] = {
    "mlp": {"width": 128, "depth": 3},
    "deep_narrow": {"width": 16, "depth": 20},
    "cnn": {"width": 16, "depth": 3},
    "vgg11": {"width": 64, "depth": 11},
    "vgg16": {"width": 64, "depth": 16},
    "resnet18": {"width": 64, "depth": 18},
}
FIXED_DEPTH = ("vgg11", "vgg16", "resnet18")
#: Optimizers with their default learning rates; the code is in training/optimizers.py.
OPTIMIZERS: dict[str, float] = {"sgd": 0.02, "adam": 1e-3, "adamw": 1e-3}
#: The learning rate of an optimizer of the user's own where none is given.
OWN_RATE = 1e-3
SCHEDULES: dict[str, str] = {
    "constant": "the learning rate throughout",
    "cosine": "half a cosine, from the learning rate to 0",
}
DATASETS: dict[str, str] = {
    "mnist5k": "5,000 real MNIST digits, 28x28, embedded",
    "digits": "1,797 real digits, 8x8, embedded",
    "synthetic": "4,000 generated images, 8x8, for tests",
    "mnist": "70,000 digits, 28x28, through torchvision",
    "fashion_mnist": "70,000 articles of clothing, 28x28, through torchvision",
    "kmnist": "70,000 cursive Japanese characters, 28x28, through torchvision",
    "emnist": "131,600 letters and digits in 47 balanced classes, 28x28, through torchvision",
    "svhn": "99,289 house numbers, 32x32 in colour, through torchvision",
    "cifar10": "60,000 photographs, 32x32 in colour, through torchvision",
    "cifar100": "60,000 photographs in 100 classes, 32x32 in colour, through torchvision",
}
#: The classes and the test images of each data set; those of a folder of images are its own.
CLASSES: dict[str, int] = dict.fromkeys(DATASETS, 10) | {"emnist": 47, "cifar100": 100}
TEST_IMAGES: dict[str, int] = dict.fromkeys(DATASETS, 10_000) | {
    "mnist5k": 1000,
    "digits": 360,
    "synthetic": 1000,
    "emnist": 18_800,
    "svhn": 26_032,
}
AUGMENTATIONS: dict[str, str] = {
    "crop": "a random crop of the image with 4 pixels of zeros around it",
    "flip": "left and right exchanged with probability 1/2",
    "cutout": "a square of half the side set to the mean (DeVries & Taylor 2017)",
}

#: What is measured at the activation sites, in the order of the columns; docs/metrics.md defines
#: each, and the code is in measures/metrics.py.
SITE_MEASURES: dict[str, str] = {
    "zero_fraction": "fraction of the outputs that are exactly 0",
    "negative_fraction": "fraction of the inputs that are <= 0",
    "dead_units": "units with output 0 for every example",
    "dead_fraction": "dead units over units",
    "submerged_units": "units with input <= 0 for every example",
    "dormant_units": "units with at most 0.025 of the layer's mean output",
    "died_units": "units alive at the last measurement and dead now",
    "revived_units": "units dead at the last measurement and alive now",
    "grad_norm": "norm of the gradient of the parameters (needs a backward pass)",
    "zero_grad_units": "units whose inputs get no gradient at all (needs a backward pass)",
    "surrogate_cosine": "cosine of the gradient followed and the true one (needs another pass)",
    "submerged_fraction": "submerged units over units",
    "ever_dead_units": "units dead at this or an earlier measurement",
    "recovered_units": "units dead at one measurement and alive at a later one",
    "pre_grad_norm": "norm of the gradient at the inputs (needs a backward pass)",
    "sign_disagreement": "parameters whose two gradients have opposite signs (the same pass)",
    "lifetime_sparsity": "how few of the examples a unit responds to",
    "population_sparsity": "how few of the units respond to an example",
    "effective_rank": "effective number of dimensions of the outputs (costly in wide layers)",
    "living_zero_fraction": "fraction of the outputs of units that are not dead that are 0",
    "pre_rms": "root mean square of the inputs",
    "weight_norm": "norm of the parameters; per layer, of the weights that feed it",
    "submerged_depth": "how far below 0 submerged units are at their highest, in pre_rms",
    "extra_grad_up": "norm of what a surrogate adds that raises inputs (a backward pass)",
    "extra_grad_down": "norm of what a surrogate adds that lowers inputs (a backward pass)",
    "extra_grad_fraction": "what a surrogate adds, as a share of squared norms (the same pass)",
}

#: Those that were added after run ids were published. A choice that names none of them keeps its
#: run id, and takes all or none of them (`read_measures` in measure_choice.py).
LATER_MEASURES = tuple(SITE_MEASURES)[1 + list(SITE_MEASURES).index("effective_rank") :]

#: What is computed on each part of the data.
SCORES: dict[str, str] = {
    "loss": "mean cross-entropy in nats",
    "accuracy": "fraction of examples classified right",
}

#: What a run is measured by after every epoch.
METRICS: dict[str, str] = {
    f"{part}_{score}": f"{text} on the {data} data"
    for part, data in {"train": "training", "val": "validation", "test": "test"}.items()
    for score, text in SCORES.items()
} | SITE_MEASURES

#: The figures that can be drawn; PLANS in plot/figure_specs.py says how.
FIGURES: dict[str, str] = {
    "curves": "metrics over epochs",
    "tradeoff": "accuracy against sparsity",
    "units": "units that are dead, came back, are submerged or dormant, over epochs",
    "gradient_depth": "gradient norm by layer",
    "cosine": "cosine of the surrogate and the true gradient over epochs",
    "leak": "metrics over the leak",
    "phase": "accuracy over two settings",
    "histogram": "distribution of the inputs of the activations",
    "line": "final metrics over a numeric setting",
    "layers": "a metric of each layer over epochs",
    "profile": "share of the runs above each accuracy",
    "pairs": "each seed with the baseline and with another activation",
}
