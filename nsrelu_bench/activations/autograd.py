"""Applying a custom `torch.autograd.Function` in the form that suits where it runs."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad


class Applier:
    """Applies a Function in one of three forms.

    Under `torch.func` it needs its `setup_context`; torch.compile traces no Function that has a
    `jvp`; and everywhere else a forward that takes ctx is twice as fast, since PyTorch inspects the
    signature of the other kind on every call.
    """

    def __init__(self, function: type[Function]) -> None:
        def forward(ctx: Any, *arguments: Any) -> Any:
            output = function.forward(*arguments)
            function.setup_context(ctx, arguments, output)
            return output

        methods = {name: staticmethod(getattr(function, name)) for name in ("backward", "jvp")}
        name = function.__name__
        self.transformed = function
        self.traced: Any = type(name, (function,), {"jvp": staticmethod(Function.jvp)})
        self.plain: Any = type(name, (Function,), {"forward": staticmethod(forward), **methods})

    def __call__(self, *arguments: Any) -> Tensor:
        """Return what the Function gives."""
        if torch.compiler.is_compiling():
            result: Tensor = self.traced.apply(*arguments)
        elif torch._C._are_functorch_transforms_active():
            result = self.transformed.apply(*arguments)
        else:
            result = self.plain.apply(*arguments)
        return result


def is_plain() -> bool:
    """Return whether nothing transforms or traces the code, so that tensors may be looked at."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )
