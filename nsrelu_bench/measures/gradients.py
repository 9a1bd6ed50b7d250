"""Gradients at a site: at an input that is overwritten, and what a surrogate adds."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nsrelu_bench.activations import Surrogate, has_own_gradient, true_gradients

#: Of torch.func.vmap, and of the vmap behind `is_grads_batched`.
BATCHED = tuple(filter(None, map(torch._C._parse_dispatch_key, ("FuncTorchBatched", "Batched"))))


def is_tied(module: nn.Module) -> bool | None:
    """Return whether a site has the true gradient; None if only a part is untied, or not known."""
    if has_own_gradient(module):
        return None
    with true_gradients(module) as untied:
        if not untied:
            return True
        return False if isinstance(module, Surrogate) else None


def is_batched(tensor: Tensor) -> bool:
    """Return whether a tensor is one of vmap's, whose values can't be read."""
    while torch._C._functorch.is_gradtrackingtensor(tensor):  # vmap over grad
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return any(map(torch._C._dispatch_keys(tensor).has, BATCHED))


class SurrogateCall:
    """A call of an untied activation that is to come, from which both gradients can be computed."""

    def __init__(self, module: nn.Module, pre: Tensor) -> None:
        self._module = module
        overwritten = getattr(module, "inplace", False)
        self._pre = pre.detach().clone() if overwritten else pre.detach()
        self._version = self._pre._version

    def gradients(self, gradient: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the gradient that the call passes on of the one at its output, and the true one.

        None if the input has been overwritten since, or inside of torch.func.grad, which lets
        nothing else be differentiated.
        """
        inside = torch._C._functorch.maybe_current_level() is not None
        if inside or self._pre._version != self._version:
            return None
        followed = self._pass_back(gradient)
        with true_gradients(self._module):
            return followed, self._pass_back(gradient)

    def _pass_back(self, gradient: Tensor) -> Tensor:
        with torch.enable_grad(), torch.random.fork_rng(devices=()):
            pre = self._pre.detach().requires_grad_()
            # Not by calling the module, which would run the hooks of others too.
            post = self._module.forward(pre.clone())
            (passed,) = torch.autograd.grad(_Start.apply(post, gradient), pre)
        return passed


class _Start(torch.autograd.Function):
    """A number whose gradient at `post` is a given one.

    torch.autograd.grad(post, pre, gradient) needs none, but imports SymPy, which takes half a
    second.
    """

    @staticmethod
    def forward(ctx: Any, post: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return post.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient, None


class OverwrittenView:
    """The gradient at a view that an activation may change in place.

    Changing a view gives it and its base a new history, in which a hook on the view from before is
    lost. The earlier history of the base still receives the gradient at the values before the
    change, with that of other uses of the base. `use` takes it, in the shape of the view.
    """

    def __init__(self, view: Tensor, use: Callable[[Tensor], None]) -> None:
        base = view._base
        self._view, self._version, self._use = view, view._version, use
        self._node = None if base is None else base.grad_fn
        if base is not None:
            self._output = base.output_nr
            self._base_layout = base.size(), base.stride()
            offset = view.storage_offset() - base.storage_offset()
            self._view_layout = view.size(), view.stride(), offset

    def watch(self) -> None:
        """Watch the base if the view has been changed since."""
        if self._view._version > self._version and self._node is not None:
            self._node.register_prehook(self._take)

    def _take(self, gradients: tuple[Tensor | None, ...]) -> None:
        gradient = gradients[self._output]
        if gradient is not None:
            size, stride = self._base_layout
            laid_out = gradient.new_empty_strided(size, stride).copy_(gradient.detach())
            self._use(laid_out.as_strided(*self._view_layout))
