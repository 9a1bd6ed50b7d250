"""What activations keep for the backward in a chain of linear layers: MiB, by activation.

    python benchmarks/ops_chain.py

Four times linear, activation and a linear layer at the end; 4096 examples of 256 float32 make a
tensor of 4 MiB. Counted is what autograd saves, weights apart, every memory once.
"""

import weakref

import torch
from torch import Tensor, nn

from nsrelu_bench.activations.functional import IMPLS
from nsrelu_bench.activations.modules import NSReLU

CHAINED = {
    "relu": nn.ReLU(),
    "relu in place": nn.ReLU(inplace=True),
    "leaky_relu": nn.LeakyReLU(0.1),
    "leaky_relu in place": nn.LeakyReLU(0.1, inplace=True),
    **{f"nsrelu {impl}": NSReLU(0.1, impl) for impl in IMPLS},
    "nsrelu in place": NSReLU(0.1, inplace=True),
}


class Kept:
    """A tensor that autograd holds; gone when autograd lets go of it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()


def saved_mib(activation: nn.Module, examples: int = 4096, units: int = 256) -> float:
    """Return what one forward pass leaves for the backward."""
    layers = [layer for _ in range(4) for layer in (nn.Linear(units, units), activation)]
    model = nn.Sequential(*layers, nn.Linear(units, units))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: weakref.WeakSet[Kept] = weakref.WeakSet()

    def keep(tensor: Tensor) -> Kept:
        handle = Kept(tensor)
        kept.add(handle)
        return handle

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda handle: handle.tensor):
        outputs = model(torch.randn(examples, units))
    storages = [handle.tensor.untyped_storage() for handle in kept]
    del outputs
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return sum(size for address, size in sizes.items() if address not in weights) / 2**20


if __name__ == "__main__":
    for name, activation in CHAINED.items():
        print(f"{name:20} {saved_mib(activation):6.2f}")
