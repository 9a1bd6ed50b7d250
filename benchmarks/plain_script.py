"""One training as a user would write it, for `throughput.py` to compare a sweep with.

Images go through PIL, ToTensor and Normalize in a DataLoader, the loss is read after every batch,
and each run is a process. With `--bare` the same training uses tensors in memory and runs several
seeds in one process: a lower bound on the time.
"""

import argparse
import itertools
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nsrelu_bench import NSReLU
from nsrelu_bench.config.run import RunConfig
from nsrelu_bench.data import Split, load_dataset

TRAINED: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "nsrelu": lambda: NSReLU(0.1),
    "nsrelu_0.3": lambda: NSReLU(0.3),
}


def build(model: str, act: str) -> nn.Module:
    """Return the network that nsrelu-bench calls mlp or cnn."""
    make = TRAINED[act]
    if model == "mlp":
        sizes = (784, 128, 128, 128)
        hidden = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), make())]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(128, 10))
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), make(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), make(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), make(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(64, 10)),
    )


def plain(split: Split, shuffle: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches the way most scripts do."""
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    class Pictures(Dataset[tuple[Tensor, int]]):
        def __init__(self) -> None:
            to_picture = transforms.ToPILImage()
            self.pictures = [to_picture(image) for image in split.images]
            self.change = transforms.Compose(
                [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
            )

        def __len__(self) -> int:
            return len(self.pictures)

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return self.change(self.pictures[index]), int(split.labels[index])

    return DataLoader(Pictures(), batch_size=64 if shuffle else 1000, shuffle=shuffle)  # type: ignore[return-value]


def train(model: str, act: str, seed: int, epochs: int, *, bare: bool) -> float:
    """Train a network and return its test accuracy."""
    data = load_dataset(RunConfig())
    torch.manual_seed(seed)
    net = build(model, act)
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, fused=bare)
    loader = None if bare else plain(data.train, shuffle=True)
    inputs = data.inputs(data.train.images)
    batches: Iterable[tuple[Tensor, Tensor]]
    for _ in range(epochs):
        if loader is None:
            order = torch.randperm(len(inputs))
            examples, targets = inputs[order], data.train.labels[order]
            batches = zip(torch.split(examples, 64), torch.split(targets, 64), strict=True)
        else:
            batches = loader
        total = 0.0
        for images, labels in batches:
            loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            if not bare:
                total += loss.item()
    net.eval()
    with torch.no_grad():
        if bare:
            tests = [(data.inputs(data.test.images), data.test.labels)]
        else:
            tests = list(plain(data.test, shuffle=False))
        right = sum(int((net(images).argmax(1) == labels).sum()) for images, labels in tests)
    return right / len(data.test)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--act", default="relu", help="one, or several separated by commas")
    parser.add_argument("--seeds", default="0", help="separated by commas")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--bare", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.act.split(","):
        for seed in given.seeds.split(","):
            print(train(given.model, name, int(seed), given.epochs, bare=given.bare))
