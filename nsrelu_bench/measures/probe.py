"""The probe: hooks that measure a model's activation sites while it is open."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from nsrelu_bench.errors import BenchError
from nsrelu_bench.measures.isolation import run_eagerly, uncompiled
from nsrelu_bench.measures.sites import (
    ACTIVATIONS,
    PRE_GRADIENT_MEASURES,
    SITE_MEASURES,
    Row,
    Site,
    check_measures,
    find_sites,
    first_tensor,
    site_rows,
    units_second,
)
from nsrelu_bench.measures.sums import grad_update, post_update, pre_update, weight_update

if TYPE_CHECKING:
    import pandas as pd

_Origins = dict[Node, tuple[nn.Parameter, ...]]


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
        weights = {p: weight_update(g) for p, g in self._gradients.items()}
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
        layout = partial(units_second, feed=self._feed, site=name)
        weights = self._feeding(pre)
        key = name, 1 + sum(other == name for other, _ in self._pass)
        self._pass[key] = Site(weights, pre_update(layout(pre)))
        if pre.requires_grad and self._wanted & PRE_GRADIENT_MEASURES:
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
                f" use inplace=False, or leave out {' and '.join(sorted(PRE_GRADIENT_MEASURES))}"
            )
        site = self._pass[name, sum(other == name for other, _ in self._pass)]
        post = units_second(first_tensor(output, name), self._feed, name)
        site.post = post_update(post, gram="effective_rank" in self._wanted)
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
        site, sums = self._sites[key], grad_update(layout(gradient))
        site.grad = site.grad + sums if site.grad else sums

    def _weight_gradient(self, weight: nn.Parameter, gradient: Tensor) -> None:
        before = self._gradients.get(weight)
        self._gradients[weight] = gradient if before is None else before + gradient


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
