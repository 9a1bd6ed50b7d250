"""The activation sites of a model: finding them, their sums, and their measures."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from nsrelu_bench.activations import OwnActivation, Surrogate
from nsrelu_bench.config import check_name
from nsrelu_bench.errors import BenchError, lookup
from nsrelu_bench.measures import metrics
from nsrelu_bench.measures.metrics import MEASURES
from nsrelu_bench.measures.own import OwnMeasure, load_measures
from nsrelu_bench.measures.sums import (
    ExtraSums,
    GradSums,
    PostSums,
    PreSums,
    Sums,
    WeightSums,
    parameter_update,
)

Row = dict[str, Any]

#: The modules that count as activations unless the user names some.
ACTIVATIONS: tuple[type[nn.Module], ...] = (
    Surrogate,
    OwnActivation,
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardshrink,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,  # and ReLU6
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.PReLU,
    nn.ReLU,
    nn.RReLU,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
    nn.Threshold,
)

# The measures of a site, in the order of the columns: what each needs, and its function of that.
# "response" and "gram" are the parts of the output's sums that cost most, "weights" the gradients
# of the weights that feed the site, and "both" those together with the true ones.
_COMPUTE: dict[str, tuple[str, Callable[..., float | None]]] = {
    "zero_fraction": ("post", metrics.zero_fraction),
    "negative_fraction": ("pre", metrics.negative_fraction),
    "dead_units": ("post", metrics.dead_units),
    "dead_fraction": ("post", metrics.dead_fraction),
    "submerged_units": ("pre", metrics.submerged_units),
    "submerged_fraction": ("pre", metrics.submerged_fraction),
    "dormant_units": ("response", metrics.dormant_units),
    "lifetime_sparsity": ("response", metrics.lifetime_sparsity),
    "population_sparsity": ("response", metrics.population_sparsity),
    "effective_rank": ("gram", metrics.effective_rank),
    "grad_norm": ("weights", metrics.grad_norm),
    "pre_grad_norm": ("grad", metrics.pre_grad_norm),
    "zero_grad_units": ("grad", metrics.zero_grad_units),
    "surrogate_cosine": ("both", metrics.surrogate_cosine),
    "sign_disagreement": ("both", metrics.sign_disagreement),
    "living_zero_fraction": ("post", metrics.living_zero_fraction),
    "pre_rms": ("pre", metrics.pre_rms),
    "weight_norm": ("parameters", metrics.weight_norm),
    "submerged_depth": ("pre", metrics.submerged_depth),
    "extra_grad_up": ("extra", metrics.extra_grad_up),
    "extra_grad_down": ("extra", metrics.extra_grad_down),
    "extra_grad_fraction": ("extra", metrics.extra_grad_fraction),
}


def _needing(*needs: str) -> frozenset[str]:
    """Return the measures that need one of these."""
    return frozenset(name for name, (need, _) in _COMPUTE.items() if need in needs)


RESPONSE_MEASURES, GRAM_MEASURES = _needing("response"), _needing("gram")
PRE_GRADIENT_MEASURES, EXTRA_MEASURES = _needing("grad"), _needing("extra")
WEIGHT_GRADIENT_MEASURES, SURROGATE_MEASURES = _needing("weights"), _needing("both")
PARAMETER_MEASURES = _needing("parameters")
GRADIENT_MEASURES = _needing("grad", "extra", "weights", "both")
PROBE_MEASURES = {
    name: text for name, text in MEASURES.items() if name in _COMPUTE.keys() - SURROGATE_MEASURES
}


@dataclass
class Site:
    """The sums over what was seen at one site."""

    weights: tuple[nn.Parameter, ...]  # of the layers that feed it
    pre: PreSums
    post: PostSums
    grad: GradSums | None  # None: there was no backward pass
    extra: ExtraSums | None
    own: Mapping[str, Any] = field(default_factory=dict)  # sums of the user's measures, by name

    @property
    def nonfinite(self) -> bool:
        """Whether any value at the site is not finite."""
        return bool(self.pre.nonfinite or self.post.nonfinite)


def find_sites(model: nn.Module, sites: Iterable[str | type[nn.Module]]) -> dict[str, nn.Module]:
    """Return the activation modules of a model by name."""
    named = dict(model.named_modules())
    asked = [sites] if isinstance(sites, str | type) else list(sites)
    types = tuple(site for site in asked if isinstance(site, type))
    names = {name: module for name, module in named.items() if name}  # without the whole
    chosen = {lookup(names, site, "module") for site in asked if isinstance(site, str)}
    found: dict[str, nn.Module] = {}
    inside: set[nn.Module] = set()
    for name, module in named.items():
        if module not in inside and (module in chosen or isinstance(module, types)):
            found[name or type(module).__name__] = module
            inside.update(module.modules())
    if not found:
        raise BenchError(
            f"no activation modules in {type(model).__name__}: name its sites, and use modules"
            " instead of functions such as F.relu, which can't be watched"
        )
    return found


def first_tensor(values: object, site: str) -> Tensor:
    """Return the first tensor in nested inputs or outputs."""
    queue = [values]
    while queue:
        value = queue.pop(0)
        if isinstance(value, Tensor):
            return value
        if isinstance(value, Mapping):
            value = tuple(value.values())
        if isinstance(value, tuple | list):
            queue[:0] = value
    raise BenchError(f"site {site!r} takes or gives no tensor: name other sites")


def site_rows(
    sites: dict[str, Site],
    weights: Mapping[nn.Parameter, WeightSums],
    wanted: frozenset[str],
    own: Mapping[str, OwnMeasure],
    finite: bool = True,
) -> list[Row]:
    """Compute the measures of each site.

    From the first site that is not finite they are empty: later values were computed from NaN,
    even where they look like numbers. Gradients start at the loss, so they are empty everywhere.
    """
    finite = finite and not any(site.nonfinite for site in sites.values())
    rows, intact = [], True
    for name, site in sites.items():
        intact = intact and not site.nonfinite
        feeding = [weights[p] for p in site.weights if p in weights]
        computed = wanted if finite else wanted - GRADIENT_MEASURES
        row: Row = {"layer": name, "units": site.post.units}
        row |= dict.fromkeys([*(name for name in _COMPUTE if name in wanted), *own])
        values = site_values([site], feeding, site.weights, computed, own) if intact else {}
        rows.append(row | values)
    return rows


def site_values(
    sites: Collection[Site],
    weights: Collection[WeightSums],
    parameters: Iterable[nn.Parameter],
    wanted: frozenset[str],
    own: Mapping[str, OwnMeasure],
) -> Row:
    """Compute the measures of some sites together, and of their weights and parameters."""
    post = [site.post for site in sites]
    sums: dict[str, Iterable[Sums | None]] = {
        "pre": [site.pre for site in sites],
        "post": post,
        "response": post,
        "gram": post,
        "grad": [site.grad for site in sites if site.grad],
        "extra": [site.extra for site in sites if site.extra],
        "weights": weights,
        "both": weights,
        "parameters": map(parameter_update, parameters if PARAMETER_MEASURES & wanted else ()),
    }
    chosen = ((name, *_COMPUTE[name]) for name in _COMPUTE if name in wanted)
    values: Row = {name: compute(*sums[need]) for name, need, compute in chosen}
    return values | {name: one.compute([s.own[name] for s in sites]) for name, one in own.items()}


def check_measures(
    measures: Iterable[str | OwnMeasure], known: Mapping[str, str]
) -> tuple[frozenset[str], dict[str, OwnMeasure]]:
    """Return the names of measures as a set, and those of the user's own by name.

    Raises:
        UsageError: One is neither known nor the user's.
        BenchError: One of the user's can't be loaded.
    """
    own = {}
    for one in load_measures(measures):
        if isinstance(one, OwnMeasure):
            own[one.name] = one
        else:
            check_name(one, known, "measure")
    names = (one if isinstance(one, str) else one.name for one in measures)
    return frozenset(names), dict(sorted(own.items()))
