"""How often the step-down adjustment errs, and how often it finds what is there, beside Holm's.

    python benchmarks/family_error.py [--studies 2000] [--seeds 10] [--groups 4] [--metrics 3]

Simulates studies in which groups are compared with one baseline, paired by seed, in metrics that
correlate. Without any difference it counts the studies in which some p falls below 0.05: at most
5 % may. With one group that differs it counts the tests that find it. The noise is normal, heavy
tailed or skewed; with skewed noise the signs of a study's differences are not quite symmetric.
"""

import argparse

import numpy as np
import numpy.typing as npt

from nsrelu_bench.compare import holm, sign_flip_p, step_down_p

Array = npt.NDArray[np.float64]

#: The correlation of metrics of one run, and the difference in standard deviations of a run.
CORRELATION = 0.8
DIFFERENCE = 1.5


def main() -> None:
    """Print one line per kind of noise."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, usual in (("studies", 2000), ("seeds", 10), ("groups", 4), ("metrics", 3)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    given = parser.parse_args()
    margin = 1.96 * (0.05 * 0.95 / given.studies) ** 0.5
    print(
        f"{given.studies} studies of {given.groups} groups, {given.metrics} metrics, {given.seeds}"
    )
    print(f"seeds; an error of 5 % is seen as 5.0 +- {100 * margin:.1f} %\n")
    print("noise         error, step-down  error, Holm  found, step-down  found, Holm")
    for noise in ("normal", "heavy-tailed", "skewed"):
        rates = simulate(noise, given.studies, (given.groups, given.metrics, given.seeds))
        columns = [f"{100 * rate:.1f} %" for rate in rates]
        print(f"{noise:12}  {columns[0]:>16}  {columns[1]:>11}  {columns[2]:>16}  {columns[3]:>11}")


def simulate(noise: str, studies: int, shape: tuple[int, int, int]) -> Array:
    """Return the rates of error of step-down and Holm, and the shares that they find."""
    random = np.random.default_rng(0)
    metrics = shape[1]
    counts = np.zeros(4)
    for _ in range(studies):
        null = differences(random, noise, shape)
        shifted = null.copy()
        shifted[:metrics] += DIFFERENCE
        counts += [
            (step_down_p(null) < 0.05).any(),
            (holm(sign_flip_p(null)) < 0.05).any(),
            (step_down_p(shifted)[:metrics] < 0.05).mean(),
            (holm(sign_flip_p(shifted))[:metrics] < 0.05).mean(),
        ]
    return counts / studies


def differences(random: np.random.Generator, noise: str, shape: tuple[int, int, int]) -> Array:
    """Return differences of groups from one baseline (groups * metrics, seeds)."""
    groups, metrics, seeds = shape

    def draw(*size: int) -> Array:
        if noise == "heavy-tailed":
            return random.standard_t(3, size) / 3**0.5
        return random.exponential(size=size) - 1 if noise == "skewed" else random.normal(size=size)

    runs = CORRELATION**0.5 * draw(groups + 1, 1, seeds)
    runs = runs + (1 - CORRELATION) ** 0.5 * draw(groups + 1, metrics, seeds)
    found: Array = runs[1:] - runs[:1]
    return found.reshape(groups * metrics, seeds)


if __name__ == "__main__":
    main()
