"""From single trainings to tables and a plot: intervals, paired tests, and what each strategy gains over one rate."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from compare_digits import choose, markdown

from finetune.results.plot_style import GREY, finish, line_style, new_figure, style

BASELINE = "uniform"
CLOSE = 0.02  # of accuracy
Cell = dict[str, Any]  # arm, rows, seed, peak; accuracy on validation rows and on test rows
Key = tuple[str, int, int, float]


def key_of(cell: Cell) -> Key:
    """Returns what identifies a training: strategy, rows, seed and peak rate."""
    return cell["arm"], cell["rows"], cell["seed"], cell["peak"]


# -- Statistics -------------------------------------------------------------------------------------------------------


def t_quantile(degrees: int, level: float = 0.95) -> float:
    """Returns the t between whose negative and positive value Student's distribution lies with this probability.

    >>> round(t_quantile(9), 4)
    2.2622
    """
    angles = np.linspace(0, np.pi / 2, 200_001)  # t = sqrt(degrees) tan(angle) makes the density a power of a cosine
    density = np.cos(angles) ** (degrees - 1)
    inside = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return float(np.sqrt(degrees) * np.tan(np.interp(level, inside / inside[-1], angles)))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and half the width of its 95 % interval, by Student's t; the width of one value is NaN."""
    if len(values) < 2:
        return float(np.mean(values)), float("nan")
    return float(np.mean(values)), t_quantile(len(values) - 1) * float(np.std(values, ddof=1)) / len(values) ** 0.5


def sign_flip_p(differences: Sequence[float]) -> float:
    """Returns the two-sided p value of an exact paired permutation test of the mean.

    If two strategies were the same, every difference could as well have had the other sign. The p value is the share
    of all 2**n choices of signs whose sum is at least as far from 0; so with n pairs it is at least 2 / 2**n.

    Args:
        differences: One for each pair, at most 20.
    """
    values = np.array(differences)
    signs = 1 - 2 * (np.arange(2 ** len(values))[:, np.newaxis] >> np.arange(len(values)) & 1)
    return float(np.mean(np.abs(signs @ values) >= abs(values.sum()) - 1e-9))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p values corrected for their number: step-down, Holm (1979)."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(np.argsort(p_values)):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


# -- Tables -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """The cells of all arms on one number of rows.

    Attributes:
        rows: Training rows.
        seeds, rates: Seeds and peak rates at which every arm was trained.
        tuned: For each arm and seed, test accuracy at the peak that was chosen on validation rows.
        peaks: For each arm and seed, that peak.
        by_rate: For each arm, test accuracy of shape `(seeds, rates)`.
    """

    rows: int
    seeds: list[int]
    rates: list[float]
    tuned: dict[str, np.ndarray]
    peaks: dict[str, list[float]]
    by_rate: dict[str, np.ndarray]


def scores(cells: Sequence[Cell], rows: int) -> Scores:
    """Sorts the cells; only seeds for which every arm was trained at every rate count.

    Raises:
        SystemExit: There is no such seed.
    """
    by_key = {key_of(cell): cell for cell in cells if cell["rows"] == rows}
    arms = list(dict.fromkeys(key[0] for key in by_key))
    rates = sorted({key[3] for key in by_key})
    all_seeds = sorted({key[2] for key in by_key})
    seeds = [s for s in all_seeds if all((arm, rows, s, rate) in by_key for arm in arms for rate in rates)]
    if not seeds:
        raise SystemExit(f"Not one seed of {rows} rows is complete. Run with `--json FILE` until it ends.")
    accuracies = {
        arm: [[(by_key[arm, rows, s, r]["validation"], by_key[arm, rows, s, r]["test"]) for r in rates] for s in seeds]
        for arm in arms
    }
    chosen = {arm: choose(rates, of_arm) for arm, of_arm in accuracies.items()}
    return Scores(
        rows,
        seeds,
        rates,
        tuned={arm: np.array(choice["test"]) for arm, choice in chosen.items()},
        peaks={arm: choice["peaks"] for arm, choice in chosen.items()},
        by_rate={arm: np.array(of_arm)[:, :, 1] for arm, of_arm in accuracies.items()},
    )


def tuned_table(of_rows: Scores) -> str:
    """Returns test accuracy at the tuned peak, by arm, and its difference to the baseline, paired by seed."""
    head = ["strategy", "test accuracy", "minus uniform", "p", "p, corrected", "peak chosen, median (range)"]
    compared = compare(of_rows.tuned)
    lines = [
        [name, mean_text(values), *compared[name], peaks_text(of_rows.peaks[name])]
        for name, values in of_rows.tuned.items()
    ]
    return markdown([f"{of_rows.rows} rows: {head[0]}", *head[1:]], lines)


def grid_table(of_rows: Scores) -> str:
    """Returns mean test accuracy at each peak rate, at how many rates it is close to its best, and the mean of all."""
    rates = [f"{rate:g}" for rate in of_rows.rates]
    head = [f"{of_rows.rows} rows, at a peak of", *rates, f"within {CLOSE} of its best at", "mean of all"]
    over_grid = {name: values.mean(axis=1) for name, values in of_rows.by_rate.items()}
    compared = compare(over_grid)
    lines = []
    for name, values in of_rows.by_rate.items():
        means = values.mean(axis=0)
        close = f"{np.count_nonzero(means >= means.max() - CLOSE)} of {len(means)}"
        difference, _, corrected = compared[name]
        at_rates = [f"{mean:.3f}" for mean in means]
        lines.append([name, *at_rates, close, mean_text(over_grid[name]), difference, corrected])
    return markdown([*head, "minus uniform", "p, corrected"], lines)


def difference_table(
    of_rows: Scores, names: Iterable[str] = ("discriminative", "gradual unfreezing", "all three")
) -> str:
    """Returns the difference to the baseline at the same peak rate, paired by seed."""
    base = of_rows.by_rate[BASELINE]
    lines = [
        [name, *(mean_text(column, "+.3f") for column in (of_rows.by_rate[name] - base).T)]
        for name in names
        if name in of_rows.by_rate
    ]
    return markdown(
        [f"{of_rows.rows} rows: minus uniform, at a peak of", *(f"{rate:g}" for rate in of_rows.rates)], lines
    )


def compare(by_arm: dict[str, np.ndarray]) -> dict[str, list[str]]:
    """Returns for each arm, as text, the difference to the baseline with its interval, and p, plain and corrected."""
    others = {name: values - by_arm[BASELINE] for name, values in by_arm.items() if name != BASELINE}
    plain = [sign_flip_p(list(differences)) for differences in others.values()]
    texts = {
        name: [mean_text(differences, "+.3f"), f"{p:.3f}", f"{corrected:.3f}"]
        for (name, differences), p, corrected in zip(others.items(), plain, holm(plain), strict=True)
    }
    return {BASELINE: ["", "", ""], **texts}


def mean_text(values: Any, form: str = ".3f") -> str:
    """Returns the mean and half the width of its interval as text: `0.912 ± 0.004`; one value is without a width."""
    mean, half = interval(list(values))
    return f"{mean:{form}}" + ("" if np.isnan(half) else f" ± {half:.3f}")


def peaks_text(peaks: Sequence[float]) -> str:
    """Returns median and range as text: `0.003 (0.001 to 0.01)`."""
    return f"{np.median(peaks):.2g} ({min(peaks):g} to {max(peaks):g})"


def text(all_scores: Sequence[Scores]) -> str:
    """Returns all tables in Markdown, under an explanation of what they show."""
    tried = ", ".join(f"{len(f.seeds)} seeds and {len(f.rates)} peak rates with {f.rows} rows" for f in all_scores)
    least = 2 / 2 ** min(len(of_rows.seeds) for of_rows in all_scores)
    parts = [
        f"{tried}. `±` is half of a 95 % interval of the mean (Student's t); p is that of an exact paired sign-flip "
        f"test (at least {least:.2g} here), corrected after Holm for the strategies of a table.",
        *(tuned_table(of_rows) for of_rows in all_scores),
        "![Test accuracy against the peak rate](images/strategies.svg)",
        *(grid_table(of_rows) for of_rows in all_scores),
        *(difference_table(of_rows) for of_rows in all_scores),
    ]
    return "\n\n".join(parts)


# -- The plot ---------------------------------------------------------------------------------------------------------


def draw(all_scores: Sequence[Scores], path: Path) -> None:
    """Draws mean test accuracy against the peak rate with 95 % bands, a panel for each number of rows."""
    with style():
        figure, axes = new_figure(1, len(all_scores), size=(7.2 * len(all_scores), 6.0), layout="constrained")
        for axis, of_rows in zip(axes, all_scores, strict=True):
            for number, (name, values) in enumerate(of_rows.by_rate.items()):
                mean, half = np.array([interval(list(column)) for column in values.T]).T
                line = line_style(number) if number < 7 else {"color": GREY, "linestyle": "-"}
                axis.plot(of_rows.rates, mean, marker="o", markersize=4, label=name, linewidth=2, **line)
                axis.fill_between(
                    of_rows.rates,
                    (mean - half).clip(0),
                    (mean + half).clip(max=1),
                    color=line["color"],
                    alpha=0.12,
                    linewidth=0,
                )
            axis.set(xscale="log", xlabel="peak learning rate (of the head)", title=f"{of_rows.rows} training rows")
        axes[0].set_ylabel("accuracy on 1,000 test rows")
        axes[-1].legend(loc="lower center", fontsize=11, ncols=2)
        finish(figure, path)
