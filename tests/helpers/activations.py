"""Activations in every form, their values, gradients and memory."""

import pytest
import torch
from torch import nn

from nsrelu_bench.activations import IMPLS, nsrelu, nsrelu_


def in_place(x, leak=0.1):
    return nsrelu_(x.clone(), leak)


def form(impl):
    return lambda x, leak=0.1: nsrelu(x, leak, impl)


# Every way to compute NSReLU.
NSRELU_FORMS = {impl: form(impl) for impl in IMPLS} | {"in place": in_place}
every_form = pytest.mark.parametrize("form", NSRELU_FORMS.values(), ids=NSRELU_FORMS)
every_leak = pytest.mark.parametrize("leak", [0.0, 0.01, 0.1, 0.3333, 1.0])


class Clone(nn.Module):
    """Gives an activation in place a tensor to overwrite."""

    def forward(self, x):
        return x.clone()


def value_and_gradient(function, x, grad):
    x = x.clone().requires_grad_()
    y = function(x)
    return y.detach(), torch.autograd.grad(y, x, grad)[0]


def kept_storages(model, x):
    """How many tensors autograd keeps for the backward, parameters apart."""
    parameters = {p.data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # held, or its address might be given to another
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(x)
    return len(kept.keys() - parameters)
