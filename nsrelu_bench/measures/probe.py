"""The probe: hooks that measure a model's activation sites while it is open."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nsrelu_bench.errors import BenchError
from nsrelu_bench.measures.gradients import OverwrittenView, SurrogateCall, is_batched, is_tied
from nsrelu_bench.measures.isolation import run_eagerly, uncompiled
from nsrelu_bench.measures.origins import TRACED_MODULES, Axes, Layer, Origin, OriginTracker
from nsrelu_bench.measures.own import OwnMeasure
from nsrelu_bench.measures.running_sums import GradientSums, PassSums, RunningSums, Total
from nsrelu_bench.measures.sites import (
    ACTIVATIONS,
    EXTRA_MEASURES,
    GRAM_MEASURES,
    PRE_GRADIENT_MEASURES,
    PROBE_MEASURES,
    RESPONSE_MEASURES,
    WEIGHT_GRADIENT_MEASURES,
    Row,
    Site,
    check_measures,
    find_sites,
    first_tensor,
    site_rows,
)
from nsrelu_bench.measures.sums import (
    ExtraSums,
    GradSums,
    PostSums,
    PreSums,
    extra_update,
    grad_update,
    post_update,
    pre_update,
    weight_update,
)
from nsrelu_bench.measures.unit_axes import Axis, Layout, check_unit_axis, find_axes, units_second

if TYPE_CHECKING:
    import pandas as pd

_Key = tuple[str, int]  # the name of a module, and its call in a pass, from 1


class _Record:
    """What was seen at one site in all passes."""

    def __init__(self, wanted: frozenset[str], pooled: int) -> None:
        gram, response = bool(wanted & GRAM_MEASURES), bool(wanted & RESPONSE_MEASURES)
        self.weights: tuple[nn.Parameter, ...] = ()
        self.pre = RunningSums(pre_update, pooled)
        self.post: RunningSums[PostSums] = RunningSums(
            partial(post_update, gram=gram, response=response), pooled
        )
        self.grad: GradientSums[GradSums] = GradientSums()
        self.extra: GradientSums[ExtraSums] = GradientSums()
        self.own: dict[str, Any] = {}  # by measure


@dataclass(slots=True)
class _Visit:
    """What is seen at one site in the current pass."""

    layout: Layout
    record: _Record
    pre: Tensor | PreSums
    post: Tensor | PostSums | None = None  # None until the output is known
    grad: PassSums[GradSums] | None = None
    extra: PassSums[ExtraSums] | None = None
    whole: Tensor | None = None  # the input, for the user's measures
    own: dict[str, Any] = field(default_factory=dict)  # what these have summed up
    call: SurrogateCall | None = None
    view: OverwrittenView | None = None


@dataclass
class _Pass:
    """The current pass."""

    tracker: OriginTracker | None  # None: all layouts are known
    visits: dict[_Key, _Visit] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)  # by the name of the module
    last: dict[str, _Visit] = field(default_factory=dict)
    feeding: set[Layer] = field(default_factory=set)  # layers that feed a site already
    depth: int = 1  # of calls of the model by itself

    def beside(self) -> AbstractContextManager[None]:
        """Keep the tracker from following what the probe itself computes."""
        return self.tracker.paused() if self.tracker else nullcontext()


class ActivationProbe:
    """Measures the activation sites of a model in the passes run while it is open.

        with ActivationProbe(model) as probe:
            loss_function(model(inputs), targets).backward()
        probe.frame()

    A site is a call of an activation module in a pass of the model: a module called more than
    once has the sites "name#1", "name#2", ... in the order of the calls. All passes that end
    without an error add up. Calls outside of a pass do not count: calls of a part of the model, or
    the recomputation of activation checkpointing. Gradient measures need a backward pass, and
    several add up as in `.grad`; they are of the gradient that the pass followed. A backward pass
    inside of the model's forward does not count.

    The model, its mode and its outputs stay as they are, and nothing of the probe is left when
    it is closed. While it is open compiled models run uncompiled, and PyTorch's fast path for
    transformers is off: neither calls hooks. docs/probe.md has the details.

    Args:
        model: Any module. Of several inputs or outputs of a site the first tensor counts.
        sites: Names of modules, as in `named_modules()`, or types of modules; by default all of
            a type in `ACTIVATIONS`. Modules inside a site are not sites themselves.
        measures: Names of `PROBE_MEASURES`, by default all of them, or of the user's own. The
            others (loss, accuracy, units that died, true gradients) need `measure`.
        unit_axis: The axis of a site's values that holds the units (a tuple: those that do
            together), for all sites or by the site's name. Without it, it is the axis of the
            features of the last linear layer or of the channels of the last convolution, followed
            through all operations since; of a module with an attribute `unit_axis`, that.

    Raises:
        UsageError: A name in `sites`, `measures` or `unit_axis` is unknown.
        BenchError: There is no activation module, or (in a pass) a site can't be measured, or it
            is not certain which of its axes holds the units.
    """

    #: Batches with at most this number of values are summed together with others.
    POOLED = 2**14

    def __init__(
        self,
        model: nn.Module,
        sites: Iterable[str | type[nn.Module]] | None = None,
        measures: Collection[str | OwnMeasure] = tuple(PROBE_MEASURES),
        unit_axis: Axis | Mapping[str, Axis] | None = None,
    ) -> None:
        self._model = uncompiled(model)
        self._modules = find_sites(self._model, ACTIVATIONS if sites is None else sites)
        self._wanted, self._own = check_measures(measures, PROBE_MEASURES)
        self._watches_inputs = bool(self._wanted & (PRE_GRADIENT_MEASURES | EXTRA_MEASURES))
        self._unit_axis = check_unit_axis(unit_axis, self._modules)
        self._records: dict[_Key, _Record] = {}
        self._layouts: dict[_Key, Layout] = {}
        self._unseen: set[str] = set()  # modules that no pass has called so far
        self._pass: _Pass | None = None
        self._gradients: dict[nn.Parameter, Tensor] = {}
        self._watched: set[nn.Parameter] = set()
        self._hooks: ExitStack | None = None
        self._following = ExitStack()

    def __enter__(self) -> Self:
        if self._hooks is not None:
            raise BenchError("this ActivationProbe is open already")
        self._records, self._layouts, self._pass = {}, {}, None
        self._gradients, self._watched, self._unseen = {}, set(), set(self._modules)
        self._hooks = ExitStack()
        self._hooks.enter_context(run_eagerly())
        self._register()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()
        if self._hooks is not None:
            self._hooks.close()
        self._hooks = None
        self._layouts = {}

    @property
    def sites(self) -> dict[str, Site]:
        """What was seen, by the name of the site, in the order of the first pass."""
        calls = Counter(name for name, _ in self._records)
        found = {}
        for (name, call), record in self._records.items():
            pre, post = record.pre.sums, record.post.sums
            if pre and post:
                grad, extra = record.grad.sums, record.extra.sums
                site = Site(record.weights, pre, post, grad, extra, record.own)
                found[f"{name}#{call}" if calls[name] > 1 else name] = site
        return found

    def frame(self) -> "pd.DataFrame":
        """Return one row per site: layer, units, the measures.

        Raises:
            BenchError: No pass was run.
        """
        import pandas as pd

        if not self._records:
            raise BenchError(
                "the probe saw no pass: inside its `with`, call the very module it was given"
            )
        weights = {p: weight_update(g) for p, g in self._gradients.items()}
        return pd.DataFrame(site_rows(self.sites, weights, self._wanted, self._own))

    def _register(self) -> None:
        self._keep(self._model.register_forward_pre_hook(self._begin))
        for name, module in self._modules.items():
            before, after = partial(self._before, name), partial(self._after, name)
            self._keep(module.register_forward_pre_hook(before, with_kwargs=True))
            self._keep(module.register_forward_hook(after))
        self._keep(self._model.register_forward_hook(self._end))
        # Also after an error.
        self._keep(self._model.register_forward_hook(self._finally, always_call=True))

    def _keep(self, hook: RemovableHandle) -> None:
        if self._hooks is not None:
            self._hooks.callback(hook.remove)

    # The pass ---------------------------------------------------------------------------------

    def _begin(self, *_: object) -> None:
        if self._pass is not None:
            self._pass.depth += 1
            return
        self._pass = _Pass(self._following.enter_context(self._follow()) if self._unseen else None)

    def _end(self, *_: object) -> None:
        """Add the pass, which went well, to those before."""
        if self._pass is None or self._pass.depth > 1:
            return
        for key, visit in self._pass.visits.items():
            if visit.post is None:
                continue
            record = self._records.setdefault(key, visit.record)
            record.weights = record.weights or visit.layout.weights
            record.pre.add(visit.pre)
            record.post.add(visit.post)
            record.own |= visit.own
            if visit.grad:
                record.grad.add(visit.grad)
            if visit.extra:
                record.extra.add(visit.extra)
            self._layouts.setdefault(key, visit.layout)
            self._unseen.discard(key[0])

    def _finally(self, *_: object) -> None:
        if self._pass is not None:
            self._pass.depth -= 1
            if not self._pass.depth:
                self._leave()

    def _leave(self) -> None:
        self._following.close()
        self._pass = None

    @contextmanager
    def _follow(self) -> Iterator[OriginTracker]:
        """Follow the tensors of a pass from layer to site."""
        tracker = OriginTracker(self._model)
        with ExitStack() as hooks:
            for module in self._model.modules():
                if isinstance(module, TRACED_MODULES):
                    hooks.callback(module.register_forward_hook(tracker.note_module).remove)
            with tracker:
                yield tracker

    # A site -----------------------------------------------------------------------------------

    def _before(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: Row) -> None:
        """Look at the input before the activation can overwrite it."""
        if self._pass is None:
            return
        whole = args[0] if args else None
        pre = whole if isinstance(whole, Tensor) else first_tensor((*args, *kwargs.values()), name)
        if torch._C._functorch.maybe_current_level() is not None and is_batched(pre):
            raise BenchError(f"site {name!r} runs under vmap, which hides its values from a probe")
        call = self._pass.calls[name] = self._pass.calls.get(name, 0) + 1
        key = name, call
        layout = self._find_layout(key, module, pre)
        record = self._records.get(key) or _Record(self._wanted, self.POOLED)
        with self._pass.beside():
            visit = _Visit(layout, record, record.pre.gather(units_second(pre, layout.pre)))
            if self._own:
                visit.whole = units_second(pre.detach().clone(), layout.pre)
        self._pass.visits[key] = self._pass.last[name] = visit
        if self._watches_inputs and pre.requires_grad:
            self._watch_input(visit, module, pre)

    def _watch_input(self, visit: _Visit, module: nn.Module, pre: Tensor) -> None:
        """Gather the gradient at the input of a site once there is a backward pass."""
        tied = is_tied(module) if self._wanted & EXTRA_MEASURES else None
        total = Total()
        grad: PassSums[GradSums] = PassSums(total)
        extra: PassSums[ExtraSums] = PassSums(total)
        visit.grad, visit.extra = grad, extra if tied else None
        visit.call = SurrogateCall(module, pre) if tied is False else None
        axes = visit.layout.pre

        def add(gradient: Tensor) -> None:
            if self._counts(gradient):
                (whole,) = total.add(gradient.detach())
                grad.sums = sums = grad_update(units_second(whole, axes))
                extra.sums = ExtraSums(sums.nonfinite, 0.0, 0.0, float(sums.square))

        # A hook that was set before a tensor is changed in place still gets the gradient at the old
        # value; on a view it does not, as the change gives the view a new history.
        visit.view = OverwrittenView(pre, add) if pre._is_view() else None
        pre.register_hook(add)  # type: ignore[no-untyped-call]

    def _watch_output(self, visit: _Visit, call: SurrogateCall, post: Tensor) -> None:
        """Gather what a surrogate adds to the gradient once there is a backward pass."""
        total = Total()
        visit.extra = extra = PassSums[ExtraSums](total)

        def add(gradient: Tensor) -> None:
            if self._counts(gradient) and (gradients := call.gradients(gradient.detach())):
                extra.sums = extra_update(*total.add(*gradients))

        post.register_hook(add)  # type: ignore[no-untyped-call]

    def _counts(self, gradient: Tensor) -> bool:
        """Return whether a gradient counts: not from during a forward pass or after closing."""
        between_passes = self._hooks is not None and self._pass is None
        return between_passes and not is_batched(gradient)

    def _after(self, name: str, module: nn.Module, _: object, output: object) -> None:
        if self._pass is None:
            return
        visit = self._pass.last[name]
        if visit.view:
            visit.view.watch()
            visit.view = None
        post = output if isinstance(output, Tensor) else first_tensor(output, name)
        if visit.layout.post is None:
            key = name, self._pass.calls[name]
            visit.layout.post = self._find_post_axes(key, module, visit.layout, post)
        with self._pass.beside():
            laid_out = units_second(post, visit.layout.post)
            visit.post = visit.record.post.gather(laid_out)
            if visit.whole is not None:
                sums, values = visit.record.own, (visit.whole, laid_out.detach())
                visit.own = {n: one.update(sums.get(n), *values) for n, one in self._own.items()}
                visit.whole = None
        if visit.call and post.requires_grad:
            self._watch_output(visit, visit.call, post)

    # Layouts ----------------------------------------------------------------------------------

    def _find_layout(self, key: _Key, module: nn.Module, pre: Tensor) -> Layout:
        """Return where the units of a site are, and the weights that feed it."""
        name, _ = key
        tracker = self._pass.tracker if self._pass else None
        if tracker is None:
            known = self._layouts.get(key)
            if known is None:
                known = next((one for (n, _), one in self._layouts.items() if n == name), None)
            if known is not None and known.dims == pre.dim():
                return known
        origin = tracker.origin(pre) if tracker else Origin()
        axes = find_axes(name, pre, self._asked_axes(key, module), origin.axes)
        return Layout(axes, pre.dim(), self._feeding(origin))

    def _feeding(self, origin: Origin) -> tuple[nn.Parameter, ...]:
        """Return the weights that feed a site.

        Those that feed a site before are left out, unless there are no others: in a stream that
        every block adds to, a site has the weights of the last block, not of all.
        """
        taken = self._pass.feeding if self._pass else set()
        layers = [layer for layer in origin.layers if layer not in taken] or origin.layers
        taken.update(layers)
        weights = tuple(dict.fromkeys(weight for layer in layers for weight in layer.weights))
        for weight in weights if self._wanted & WEIGHT_GRADIENT_MEASURES else ():
            if weight.requires_grad and weight not in self._watched:
                self._watched.add(weight)
                self._keep(weight.register_hook(partial(self._add_weight_gradient, weight)))  # type: ignore[no-untyped-call]
        return weights

    def _add_weight_gradient(self, weight: nn.Parameter, gradient: Tensor) -> None:
        if self._counts(gradient):
            before = self._gradients.get(weight)
            self._gradients[weight] = gradient if before is None else before + gradient

    def _find_post_axes(self, key: _Key, module: nn.Module, layout: Layout, post: Tensor) -> Axes:
        tracker = self._pass.tracker if self._pass else None
        known = tracker.origin(post).axes if tracker else None
        if not known and post.dim() == layout.dims:
            known = layout.pre
        return find_axes(key[0], post, self._asked_axes(key, module), known)

    def _asked_axes(self, key: _Key, module: nn.Module) -> Axes | None:
        """Return the axes of the units that the user or the module names."""
        name, call = key
        asked = self._unit_axis.get(f"{name}#{call}", self._unit_axis.get(name))
        own = getattr(module, "unit_axis", None)
        if asked is None and own is not None:
            return own if isinstance(own, tuple) else (own,)
        return asked
