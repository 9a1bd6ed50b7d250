"""Find where the values at a site come from: the layers that feed it, and the axes of their units.

During a pass a `TorchDispatchMode` sees each operation. A product with a parameter, or a
convolution, is a layer and determines which axis of its result holds the units; other operations
pass on what is known of their inputs, or leave the axes unknown. Of Linear(8, 16), view(-1, 4, 4)
and relu, the first is a layer with its units on axis -1, the second splits them into axes -2 and
-1, and the third keeps these. Nothing is inferred from sizes alone: they may agree by chance.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch._C import DispatchKey
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

#: Axes counted from the last, which is -1; () where no axis holds units.
Axes = tuple[int, ...]
Arguments = Mapping[str, Any]

#: Modules of torch.nn whose results are noted by the module. Most layers are found by their
#: operations; not where they compute with constants alone or with tensors that are no parameters.
TRACED_MODULES = (
    nn.Linear,
    _ConvNd,
    nn.Bilinear,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.RNNCellBase,
    _InstanceNorm,
)


@dataclass(frozen=True, eq=False)
class Layer:
    """One computation of a layer, with its weights."""

    weights: tuple[nn.Parameter, ...]


@dataclass(frozen=True)
class Origin:
    """What is known of a tensor: which axes hold the units (None: not known) of which layers."""

    axes: Axes | None = None
    layers: tuple[Layer, ...] = ()


@dataclass(frozen=True)
class Constant:
    """A tensor that no input decides, with the parameters that it was computed from."""

    parameters: tuple[nn.Parameter, ...] = ()


class OriginTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the tensors of a pass while it is entered."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: MutableMapping[Tensor, Origin | Constant] = WeakIdKeyDictionary()
        # By tensor: of which it is a part, and the axis along which it was selected.
        self._parts: MutableMapping[Tensor, tuple[ref[Tensor], int | None]] = WeakIdKeyDictionary()
        self._paused = False
        with torch.inference_mode():
            self._inference_state = (
                torch._C._dispatch_tls_local_include_set(),
                torch._C._dispatch_tls_local_exclude_set(),
            )
        for parameter in model.parameters():
            self._known[parameter] = Constant((parameter,))
        for buffer in model.buffers():
            self._known[buffer] = Constant()

    def origin(self, tensor: Tensor) -> Origin:
        """Return what is known of a tensor."""
        known = self._known.get(tensor)
        return known if isinstance(known, Origin) else Origin()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Follow no operation while this is open."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def note_module(self, module: nn.Module, inputs: object, output: object) -> None:
        """Note the output of one of `TRACED_MODULES` whose operations have not shown it."""
        tensor = next(_tensors([output]), None)
        if tensor is None:
            return
        origin = self.origin(tensor)
        if isinstance(module, _InstanceNorm):
            before = self.origin(next(_tensors([inputs]))).axes
            self._known[tensor] = replace(origin, axes=before or (1 - tensor.dim(),))
        elif not origin.layers:
            spatial = len(module.kernel_size) if isinstance(module, _ConvNd) else 0
            self._known[tensor] = Origin((-1 - spatial,), (Layer(weights_of(module)),))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: being kept from the compiler imports it, which takes over a second."""
        return False

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if self._paused:
            return func(*args, **(kwargs or {}))
        if torch.is_inference_mode_enabled() and _is_composite(func, [args, kwargs or {}]):
            # Outside of inference mode PyTorch takes such operations apart before they get here.
            # The dispatcher is put in the state that it has there: not a bit of the result changes.
            with torch._C._ForceDispatchKeyGuard(*self._inference_state), self:
                return func._op_dk(DispatchKey.CompositeImplicitAutograd, *args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        outputs = list(_tensors([result]))
        # An operation that is called in an unforeseen way leaves its results unknown.
        with suppress(AttributeError, IndexError, KeyError, TypeError, ValueError):
            self._follow(func, args, kwargs or {}, outputs)
        return result

    def _follow(
        self,
        func: torch._ops.OpOverload[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outputs: list[Tensor],
    ) -> None:
        """Note what is known of an operation's results."""
        name, arguments = _describe(func)
        given = dict(zip(arguments, args, strict=False)) | kwargs
        layer = self._layer(name, given)
        for output in outputs:
            known = layer or self._hand_on(name, given, output)
            self._known[output] = known
            if name in PARTS:
                dim = given.get("dim", 0) % given["self"].dim() if name == "select" else None
                self._parts[output] = ref(given["self"]), dim
            elif func._schema.is_mutable and isinstance(known, Origin):
                self._note_whole(output, known)

    def _note_whole(self, part: Tensor, known: Origin) -> None:
        """Note what is known of a part of a tensor, which was written to, for the whole."""
        while part in self._parts:
            whole, dim = self._parts[part]
            part = whole()  # type: ignore[assignment]
            if part is None:
                return
            axes = known.axes
            if axes and dim is not None:
                axes = tuple(a - (a + part.dim() <= dim) for a in axes)
            known = replace(known, axes=axes)
            self._known[part] = known

    def _layer(self, name: str, given: Arguments) -> Origin | None:
        """Return the origin of a layer's result; None if the operation is not a layer."""
        if name in CONVOLUTIONS:
            weight = given["weight"]
            return self._of_layer(1 - weight.dim(), [weight], given)
        if name in LOOKUPS:
            return self._of_layer(-1, list(_tensors(given.values())), given)
        if name not in PRODUCTS:
            return None
        left, right = (given[key] for key in PRODUCTS[name])
        of_left, of_right = (self._known.get(tensor, Origin()) for tensor in (left, right))
        if _is_weight(of_right) and not _is_weight(of_left):
            return self._of_layer(-1 if right.dim() > 1 else None, [right], given)
        if _is_weight(of_left) and isinstance(of_right, Origin):
            return self._of_layer(-2 if right.dim() > 1 else -1, [left], given)
        return None

    def _of_layer(self, axis: int | None, weights: list[Tensor], given: Arguments) -> Origin:
        """Return the origin of what is computed with some weights; None: no axis holds units."""
        axes = () if axis is None else (axis,)
        found = (self._known.get(weight, Origin()) for weight in weights)
        parameters = [p for known in found if isinstance(known, Constant) for p in known.parameters]
        matrices = tuple(dict.fromkeys(p for p in parameters if p.dim() > 1))
        return Origin(axes, (Layer(matrices),) if matrices else self._layers(given))

    def _layers(self, given: Arguments) -> tuple[Layer, ...]:
        """Return the layers that feed the inputs of an operation."""
        origins = map(self.origin, _tensors(given.values()))
        return tuple(dict.fromkeys(layer for origin in origins for layer in origin.layers))

    def _hand_on(self, name: str, given: Arguments, output: Tensor) -> Origin | Constant:
        """Return the origin of a result that is not a layer's."""
        inputs = list(_tensors(given.values()))
        known = [self._known.get(tensor, Origin()) for tensor in inputs]
        constants = [one.parameters for one in known if isinstance(one, Constant)]
        if len(constants) == len(known):
            return Constant(tuple(dict.fromkeys(itertools.chain(*constants))))
        layers = () if name == "detach" else self._layers(given)
        return Origin(self._axes(name, given, inputs, output), layers)

    def _axes(
        self, name: str, given: Arguments, inputs: list[Tensor], output: Tensor
    ) -> Axes | None:
        """Return which axes of a result that is not a layer's hold the units, if that is known."""
        if name in COMBINING:
            return _agreed(self.origin(tensor).axes for tensor in inputs)
        if name in PRODUCTS:
            of_left, of_right = (self.origin(given[key]).axes for key in PRODUCTS[name])
            kept = [axes for axes, own in ((of_left, (-2,)), (of_right, (-1,))) if axes == own]
            return kept[0] if len(kept) == 1 and output.dim() > 1 else None
        source = inputs[0]
        axes = self.origin(source).axes
        if name in CHANNELS and source.dim() > 1:
            channels = 1 - source.dim()
            return (channels,) if axes is None or channels in axes else axes
        if name in LAYER_NORMS and axes is None and len(given["normalized_shape"]) == 1:
            return (-1,)
        if axes is None:
            return None
        if name in UNCHANGED or name.startswith(UNCHANGED_NAMES):
            return axes if output.dim() == source.dim() else None
        if name in MOVES:
            places = [axis + source.dim() for axis in axes]
            moved = MOVES[name](places, source.shape, given, output.shape)
            return None if moved is None else tuple(place - output.dim() for place in moved)
        return None


@cache
def _describe(func: torch._ops.OpOverload[..., Any]) -> tuple[str, list[str]]:
    """Return an operation's name, of all pointwise ones "pointwise", and those of its arguments."""
    name = func._schema.name.partition("::")[2].removesuffix("_")
    if torch.Tag.pointwise in func.tags:
        name = "pointwise"
    return name, [argument.name for argument in func._schema.arguments]


def weights_of(module: nn.Module) -> tuple[nn.Parameter, ...]:
    """Return the parameters of a layer but its biases."""
    named = module.named_parameters()
    return tuple(p for name, p in named if not any(n[:4] == "bias" for n in name.split(".")))


def _is_composite(func: torch._ops.OpOverload[..., Any], given: list[Any]) -> bool:
    """Return whether an operation on some tensors is made of other operations alone."""
    tensors = list(_tensors(given))
    keys = {torch._C._dispatch_key_for_device(tensor.device.type) for tensor in tensors}
    has = partial(torch._C._dispatch_has_kernel_for_dispatch_key, func.name())  # type: ignore[no-untyped-call]
    plain = not any(tensor.is_nested for tensor in tensors)
    return plain and has("CompositeImplicitAutograd") and not any(map(has, keys))


def _is_weight(known: Origin | Constant) -> bool:
    return isinstance(known, Constant) and bool(known.parameters)


def _agreed(found: Iterable[Axes | None]) -> Axes | None:
    """Return the axes that all tensors agree on which have any; None if they disagree."""
    distinct = {axes for axes in found if axes is not None}
    holding = distinct - {()}
    if len(holding) > 1 or not distinct:
        return None
    return holding.pop() if holding else ()


def _tensors(values: Iterable[object]) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples and lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())


# Where an operation moves axes. Each function takes the places of the units' axes from 0, the shape
# before, the arguments by name, and the shape after; it returns the places after, None if unknown.

Places = list[int]
Shape = Sequence[int]


def _view(places: Places, before: Shape, _: Arguments, after: Shape) -> Places | None:
    """Return the axes after that a view has split the units' into; None if it has merged them."""
    if list(before) == list(after):
        return places
    moved: Places = []
    for place in places:
        units, inner = before[place], math.prod(before[place + 1 :])
        end = len(after)
        while end and math.prod(after[end:]) < inner:
            end -= 1
        if units == 1 and (inner == 1 or after[end - 1] == 1):
            moved += [end - 1] if after[end - 1] == 1 else []
            continue
        start = end
        while start and math.prod(after[start:end]) < units:
            start -= 1
        split = [axis for axis in range(start, end) if after[axis] > 1]
        exact = math.prod(after[end:]) == inner and math.prod(after[start:end]) == units
        if units == 1 or not exact or start == 0:
            return None
        moved += split
    return moved


def _select(places: Places, before: Shape, given: Arguments, _: Shape) -> Places:
    return _without(places, [given.get("dim", 0) % len(before)])


def _squeeze(places: Places, before: Shape, given: Arguments, _: Shape) -> Places:
    dims = given.get("dim", range(len(before)))
    asked = [dims] if isinstance(dims, int) else dims
    return _without(places, [d % len(before) for d in asked if before[d] == 1])


def _reduce(places: Places, before: Shape, given: Arguments, after: Shape) -> Places:
    dims = given.get("dim")
    asked = [dims] if isinstance(dims, int) else dims or range(len(before))
    removed = [d % len(before) for d in asked]
    if len(before) == len(after):
        return [place for place in places if place not in removed]
    return _without(places, removed)


def _without(places: Places, removed: Places) -> Places:
    kept = (place for place in places if place not in removed)
    return [place - sum(axis < place for axis in removed) for place in kept]


def _insert(places: Places, _: Shape, given: Arguments, after: Shape) -> Places:
    new = given.get("dim", 0) % len(after)
    return [place + (place >= new) for place in places]


def _permute(places: Places, before: Shape, given: Arguments, _: Shape) -> Places:
    order = [d % len(before) for d in given["dims"]]
    return [order.index(place) for place in places]


def _transpose(places: Places, before: Shape, given: Arguments, _: Shape) -> Places:
    one, other = (given.get(key, -2 + i) % len(before) for i, key in enumerate(("dim0", "dim1")))
    return [{one: other, other: one}.get(place, place) for place in places]


def _keep(places: Places, before: Shape, _: Arguments, after: Shape) -> Places:
    return [place + len(after) - len(before) for place in places]


def _index(places: Places, before: Shape, given: Arguments, after: Shape) -> Places | None:
    """Return the axes after the indexed ones, which keep their place counted from the last."""
    if min(places, default=len(before)) < len(given["indices"]):
        return None
    return _keep(places, before, given, after)


def _along(places: Places, before: Shape, given: Arguments, _: Shape) -> Places | None:
    """Return None if values were picked along the units' axis: the results are not units."""
    dim = given["dimension"] if "dimension" in given else given["dim"]
    return None if dim % len(before) in places else places


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The names of operations, without the prefix `aten::` and the suffix `_` of those in place.

CONVOLUTIONS = _names(
    "convolution convolution_overrideable cudnn_convolution miopen_convolution mkldnn_convolution"
    " conv_tbc deform_conv2d"
)
#: Other operations with weights, whose results have their units last.
LOOKUPS = _names(
    "embedding _embedding_bag _embedding_bag_forward_only _trilinear"
    " mkldnn_rnn_layer _cudnn_rnn miopen_rnn"
)
#: Products of matrices, with the names of their factors.
PRODUCTS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("mm", "bmm"), ("self", "mat2")),
    **dict.fromkeys(("addmm", "_addmm_activation"), ("mat1", "mat2")),
    **dict.fromkeys(("baddbmm", "addbmm"), ("batch1", "batch2")),
    "mv": ("self", "vec"),
    "addmv": ("mat", "vec"),
    "linear": ("input", "weight"),
}
#: Operations whose results have the axes of all their inputs.
COMBINING = _names(
    "pointwise cat copy index_add scatter scatter_add scatter_reduce slice_scatter _prelu_kernel"
)
#: Normalisations with channels on the axis after the first.
CHANNELS = _names(
    "native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit"
    " _native_batch_norm_legit_no_training _batch_norm_with_update _batch_norm_no_update"
    " native_group_norm"
)
LAYER_NORMS = _names("native_layer_norm _fused_rms_norm")
#: Operations that leave every axis where it is.
UNCHANGED = LAYER_NORMS | _names(
    "alias clone detach _to_copy lift_fresh _softmax _log_softmax log_sigmoid_forward glu"
    " rrelu_with_noise rrelu_with_noise_functional cumsum cumprod logcumsumexp cummax flip roll"
    " renorm native_dropout bernoulli pixel_shuffle pixel_unshuffle channel_shuffle"
    " native_channel_shuffle roi_align ps_roi_align roi_pool slice index_select split"
    " split_with_sizes unsafe_split unsafe_split_with_sizes grid_sampler_2d grid_sampler_3d"
    " _thnn_fused_lstm_cell _thnn_fused_gru_cell"
)
#: And those whose names begin with one of these.
UNCHANGED_NAMES = (
    *("max_pool", "avg_pool", "adaptive_", "_adaptive_", "mkldnn_max_pool", "mkldnn_adaptive"),
    *("fractional_max_pool", "max_unpool", "upsample_", "_upsample_"),
    *("constant_pad", "reflection_pad", "replication_pad"),
)
#: Operations that give a part of a tensor, which may then be written to.
PARTS = _names("slice select")
Move = Callable[[Places, Shape, Arguments, Shape], Places | None]
MOVES: dict[str, Move] = {
    **dict.fromkeys(_names("view _unsafe_view _reshape_alias"), _view),
    **dict.fromkeys(_names("sum mean amax amin max min prod var std nansum"), _reduce),
    **dict.fromkeys(_names("linalg_vector_norm norm logsumexp median any all argmax"), _reduce),
    **dict.fromkeys(_names("select unbind"), _select),
    **dict.fromkeys(_names("unsqueeze stack"), _insert),
    **dict.fromkeys(_names("transpose t"), _transpose),
    **dict.fromkeys(_names("expand repeat"), _keep),
    "squeeze": _squeeze,
    "permute": _permute,
    "index": _index,
    "gather": _along,
    "unfold": _along,
}
