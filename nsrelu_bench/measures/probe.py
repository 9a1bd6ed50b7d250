"""Measuring a model: hooks that live only while measuring, and leave training as it was.

`ActivationProbe` watches the activation sites of any model while its user runs passes through
it. `measure` takes all measures of a classifier on a probe set.
"""

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from nsrelu_bench.activations import Surrogate
from nsrelu_bench.errors import BenchError, lookup
from nsrelu_bench.measures import metrics
from nsrelu_bench.measures.metrics import MEASURES, GradSums, PostSums, PreSums, Sums, WeightSums

if TYPE_CHECKING:
    import pandas as pd


Row = dict[str, Any]
_Origins = dict[Node, tuple[nn.Parameter, ...]]

#: The modules that are taken for activations unless the user names some.
ACTIVATIONS: tuple[type[nn.Module], ...] = (
    Surrogate,
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

# The measures of a site, in the order of the columns, and the sums that each is computed from.
_COMPUTE: dict[str, tuple[str, Callable[..., float | None]]] = {
    "zero_fraction": ("post", metrics.zero_fraction),
    "negative_fraction": ("pre", metrics.negative_fraction),
    "dead_units": ("post", metrics.dead_units),
    "dead_fraction": ("post", metrics.dead_fraction),
    "submerged_units": ("pre", metrics.submerged_units),
    "submerged_fraction": ("pre", metrics.submerged_fraction),
    "dormant_units": ("post", metrics.dormant_units),
    "lifetime_sparsity": ("post", metrics.lifetime_sparsity),
    "population_sparsity": ("post", metrics.population_sparsity),
    "effective_rank": ("post", metrics.effective_rank),
    "grad_norm": ("weights", metrics.grad_norm),
    "pre_grad_norm": ("grad", metrics.pre_grad_norm),
    "zero_grad_units": ("grad", metrics.zero_grad_units),
    "surrogate_cosine": ("weights", metrics.surrogate_cosine),
    "sign_disagreement": ("weights", metrics.sign_disagreement),
}
SURROGATE_MEASURES = {"surrogate_cosine", "sign_disagreement"}
_PRE_GRADIENT = {"pre_grad_norm", "zero_grad_units"}
GRADIENT_MEASURES = {"grad_norm", *_PRE_GRADIENT, *SURROGATE_MEASURES}
SITE_MEASURES = {
    name: text for name, text in MEASURES.items() if name in _COMPUTE.keys() - SURROGATE_MEASURES
}


@dataclass
class Site:
    """What was seen at one site."""

    weights: tuple[nn.Parameter, ...]  # of the layer that feeds it
    pre: PreSums
    post: PostSums | None = None  # until the activation has answered
    grad: GradSums | None = None  # until there was a backward pass

    @property
    def units(self) -> int:
        """Number of units."""
        return self.post.units if self.post else len(self.pre.nonpositive)

    @property
    def nonfinite(self) -> bool:
        """Whether any value at the site is not finite."""
        return bool(self.pre.nonfinite or (self.post and self.post.nonfinite))


class ActivationProbe:
    """Measures the activation sites of a model in the passes run while it is open.

        with ActivationProbe(model) as probe:
            loss_function(model(inputs), targets).backward()
        probe.frame()

    A site is a call of an activation module in a pass of the model: a module called more than
    once has the sites "name#1", "name#2", ... in the order of the calls. All passes add up that
    end without an error. Calls outside of a pass do not count, be it of a part of the model or
    the recomputation of activation checkpointing. Gradient measures need a backward pass, and
    several add up as in `.grad`; they are of the gradient that the pass followed.

    The model, its mode and its outputs stay as they are, and nothing of the probe is left when
    it is closed. While it is open compiled models run uncompiled: compiled code calls no hooks.

    Args:
        model: Any module. At the sites values are (N, U), (N, U, ...) after a convolution, or
            (N, ..., U) after a linear layer; where neither came before, (N, ..., U) if they have
            three dimensions and (N, U, ...) if more. Of several inputs or outputs the first
            tensor counts.
        sites: Names of modules, as in `named_modules()`, or types of modules; by default all of
            a type in `ACTIVATIONS`. Modules inside a site are none.
        measures: Names of `MEASURES`, of those that can be seen from inside a model; by default
            all of these. The others (loss, accuracy, lives, true gradients) need `measure`.

    Raises:
        UsageError: A name in `sites` or `measures` is unknown.
        BenchError: There is no activation module, or (in a pass) a site can't be measured.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Iterable[str | type[nn.Module]] | None = None,
        measures: Collection[str] = tuple(SITE_MEASURES),
    ) -> None:
        self._model = uncompiled(model)
        self._modules = find_sites(self._model, ACTIVATIONS if sites is None else sites)
        self._wanted = check_measures(measures, SITE_MEASURES)
        self._sites: dict[tuple[str, int], Site] = {}  # by module name and call, from 1
        self._pass: dict[tuple[str, int], Site] | None = None  # those of the pass that runs
        self._feed: nn.Module | None = None  # the last layer with weights that ran in it
        self._origins: _Origins = {}  # by autograd's node: the weights of layers that ran in it
        self._taken: set[Node] = set()  # those of layers that feed a site before
        self._view: tuple[Tensor, int] | None = None  # an input that is a view, and its version
        self._gradients: dict[nn.Parameter, Tensor] = {}
        self._hooks: ExitStack | None = None

    def __enter__(self) -> Self:
        if self._hooks is not None:
            raise BenchError("this ActivationProbe is open already")
        self._sites, self._gradients, self._pass = {}, {}, None
        self._hooks = ExitStack()
        self._hooks.enter_context(run_eagerly())
        self._register()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._hooks is not None:
            self._hooks.close()
        self._hooks = self._pass = self._feed = self._view = None
        self._origins, self._taken = {}, set()

    @property
    def sites(self) -> dict[str, Site]:
        """What was seen, by the name of the site, in the order of the first pass."""
        calls = Counter(name for name, _ in self._sites)
        return {
            f"{name}#{call}" if calls[name] > 1 else name: site
            for (name, call), site in self._sites.items()
        }

    def frame(self) -> "pd.DataFrame":
        """Return one row a site: layer, units, the measures.

        Raises:
            BenchError: No pass was run.
        """
        import pandas as pd

        if not self._sites:
            raise BenchError(
                "the probe saw no pass: inside its `with`, call the very module it was given"
            )
        weights = {p: metrics.weight_update(g) for p, g in self._gradients.items()}
        return pd.DataFrame(site_rows(self.sites, weights, self._wanted))

    def _register(self) -> None:
        self._keep(self._model.register_forward_pre_hook(self._begin))
        for module in self._model.modules():
            if weights := _weights(module):
                self._keep(module.register_forward_hook(self._fed))
                for weight in weights if "grad_norm" in self._wanted else ():
                    if weight.requires_grad:
                        self._watch(weight, partial(self._weight_gradient, weight))
        for name, module in self._modules.items():
            before, after = partial(self._before, name), partial(self._after, name)
            self._keep(module.register_forward_pre_hook(before, with_kwargs=True))
            self._keep(module.register_forward_hook(after))
        self._keep(self._model.register_forward_hook(self._end))

    def _keep(self, hook: RemovableHandle) -> None:
        if self._hooks is not None:
            self._hooks.callback(hook.remove)

    def _watch(self, tensor: Tensor, hook: Callable[[Tensor], None]) -> None:
        self._keep(tensor.register_hook(hook))  # type: ignore[no-untyped-call]

    def _begin(self, *_: object) -> None:
        self._pass, self._feed, self._view = {}, None, None
        self._origins, self._taken = {}, set()

    def _fed(self, module: nn.Module, _: object, output: object) -> None:
        self._feed = module
        if isinstance(output, Tensor) and output.grad_fn is not None:
            self._origins[output.grad_fn] = _weights(module)

    def _feeding(self, pre: Tensor) -> tuple[nn.Parameter, ...]:
        """Return the weights that feed a site: of the layers that the graph leads back to first.

        Those that feed a site before are left out, unless there is none else: in a stream that
        every block adds to, a site has the weights of the last block, not of all.
        """
        near = _nearest(pre.grad_fn, self._origins)
        feeding = [node for node in near if node not in self._taken] or near
        self._taken.update(feeding)
        return tuple(weight for node in feeding for weight in self._origins[node])

    def _before(self, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: Row) -> None:
        """Look at the input before the activation can overwrite it."""
        if self._pass is None:
            return
        pre = first_tensor((*args, *kwargs.values()), name)
        layout = partial(_units_second, feed=self._feed, site=name)
        weights = self._feeding(pre)
        key = name, 1 + sum(other == name for other, _ in self._pass)
        self._pass[key] = Site(weights, metrics.pre_update(layout(pre)))
        if pre.requires_grad and self._wanted & _PRE_GRADIENT:
            # On a tensor that is then changed in place, a hook from before the change gets the
            # gradient at the value before. Not so on a view: the change gives it a new history.
            self._view = (pre, pre._version) if pre._is_view() else None
            self._watch(pre, partial(self._pre_gradient, key, layout))

    def _after(self, name: str, _: nn.Module, __: object, output: object) -> None:
        if self._pass is None:
            return
        if self._view is not None and self._view[0]._version > self._view[1]:
            raise BenchError(
                f"site {name!r} overwrites a view in place, which hides the gradient at its input:"
                f" use inplace=False, or leave out {' and '.join(sorted(_PRE_GRADIENT))}"
            )
        site = self._pass[name, sum(other == name for other, _ in self._pass)]
        post = _units_second(first_tensor(output, name), self._feed, name)
        site.post = metrics.post_update(post, gram="effective_rank" in self._wanted)
        self._view = None

    def _end(self, *_: object) -> None:
        """Add the pass, which went well, to those before."""
        for key, site in (self._pass or {}).items():
            before = self._sites.setdefault(key, site)
            if before is not site and before.post and site.post:
                before.pre, before.post = before.pre + site.pre, before.post + site.post
                before.weights = before.weights or site.weights
        self._pass, self._origins, self._taken = None, {}, set()

    def _pre_gradient(
        self, key: tuple[str, int], layout: Callable[[Tensor], Tensor], gradient: Tensor
    ) -> None:
        site, sums = self._sites[key], metrics.grad_update(layout(gradient))
        site.grad = site.grad + sums if site.grad else sums

    def _weight_gradient(self, weight: nn.Parameter, gradient: Tensor) -> None:
        before = self._gradients.get(weight)
        self._gradients[weight] = gradient if before is None else before + gradient


def site_rows(
    sites: dict[str, Site],
    weights: Mapping[nn.Parameter, WeightSums],
    wanted: frozenset[str],
    finite: bool = True,
) -> list[Row]:
    """Compute the measures of each site.

    From the first that is not finite on there are none: what comes later has been computed from
    NaN, even where it looks like numbers. Gradients come from the far end: there are none at all.
    """
    finite = finite and not any(site.nonfinite for site in sites.values())
    rows, intact = [], True
    for name, site in sites.items():
        intact = intact and not site.nonfinite
        feeding = [weights[p] for p in site.weights if p in weights]
        computed = wanted if finite else wanted - GRADIENT_MEASURES
        row: Row = {"layer": name, "units": site.units}
        row |= dict.fromkeys(name for name in _COMPUTE if name in wanted)
        rows.append(row | (site_values([site], feeding, computed) if intact else {}))
    return rows


def site_values(
    sites: Collection[Site], weights: Collection[WeightSums], wanted: frozenset[str]
) -> Row:
    """Compute the measures of some sites together."""
    sums: dict[str, Iterable[Sums | None]] = {
        "pre": [site.pre for site in sites],
        "post": [site.post for site in sites],
        "grad": [site.grad for site in sites if site.grad],
        "weights": weights,
    }
    chosen = ((name, *_COMPUTE[name]) for name in _COMPUTE if name in wanted)
    return {name: compute(*sums[kind]) for name, kind, compute in chosen}


def check_measures(measures: Collection[str], known: Mapping[str, str]) -> frozenset[str]:
    """Return the names as a set; raise UsageError for an unknown one."""
    for name in measures:
        lookup(known, name, "measure")
    return frozenset(measures)


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the module that torch.compile was given, or the module itself."""
    original: nn.Module = getattr(model, "_orig_mod", model)
    return original


@contextmanager
def run_eagerly() -> Iterator[None]:
    """Run compiled models uncompiled while this is open."""
    if "torch._dynamo" in sys.modules:  # otherwise nothing can be compiled
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


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


def _nearest(node: Node | None, origins: _Origins) -> list[Node]:
    """Return those of `origins` that are met first on each way back from a node."""
    found: list[Node] = []
    seen: set[Node] = set()
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in origins:
            found.append(node)
        else:
            waiting += [before for before, _ in node.next_functions]
    return found


def _weights(module: nn.Module) -> tuple[nn.Parameter, ...]:
    """Return the weights of a layer that mixes units; of others, as normalisations, none."""
    own = module._parameters.get("weight")
    if isinstance(module, nn.Linear | _ConvNd) or (own is not None and own.dim() > 1):
        return tuple(p for name, p in module.named_parameters() if name != "bias")
    return ()


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


def _units_second(values: Tensor, feed: nn.Module | None, site: str) -> Tensor:
    """Return the values as (N, U, ...)."""
    if values.dim() < 2:
        raise BenchError(
            f"site {site!r} has values of shape {tuple(values.shape)}; needed: (examples, units)"
            " or more"
        )
    if isinstance(feed, nn.Linear):
        last = values.shape[-1] == feed.out_features
    else:
        last = values.dim() == 3 and not isinstance(feed, _ConvNd)
    return values.movedim(-1, 1) if last else values
