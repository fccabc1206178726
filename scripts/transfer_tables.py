"""From the cells of `bench_transfer.py` to tables and plots."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from compare_digits import markdown
from strategy_tables import holm, mean_text, sign_flip_p

from finetune.results.plot_style import GREY, finish, line_style, new_figure, style

Cell = dict[str, Any]
BASELINE = "uniform"
POINT = 0.01  # of accuracy
SEARCH = "search of three rates"  # what `finetune new` writes: `train: {learning_rate: search}` around 3e-3
TRIED = (1e-3, 3e-3, 1e-2)


@dataclass(frozen=True)
class Scores:
    """All arms on one number of rows of one task, on the seeds that are complete.

    Attributes:
        task: Name of the task.
        rows: Rows to train on.
        seeds: The seeds.
        peaks: The peak rates of the grid.
        test: For each arm, test accuracy, shape `(seeds, rates)`; arms without a search have a single column.
        validation: The same on validation rows.
        seconds: For each arm, processor seconds of all its trainings on a seed, compilation included, shape `(seeds,)`.
    """

    task: str
    rows: int
    seeds: tuple[int, ...]
    peaks: tuple[float, ...]
    test: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]
    seconds: dict[str, np.ndarray]

    @property
    def searched(self) -> list[str]:
        """Names of the arms with a search."""
        return [arm for arm, values in self.test.items() if values.shape[1] > 1]

    def chosen(self, arm: str) -> np.ndarray:
        """Returns the place of the rate that is best on validation rows, for each seed; of equals the lowest."""
        return self.validation[arm].argmax(axis=1)

    def tuned(self, arm: str) -> np.ndarray:
        """Returns test accuracy at the rates that were chosen on validation rows, for each seed."""
        return np.take_along_axis(self.test[arm], self.chosen(arm)[:, np.newaxis], axis=1)[:, 0]

    @property
    def best(self) -> str:
        """The tuned arm with the best mean on test rows: chosen with the answers known, so the hardest to equal."""
        return max(self.searched, key=lambda arm: self.tuned(arm).mean())

    def best_by_validation(self) -> np.ndarray:
        """Returns the test accuracy of the best of all arms and rates on validation rows, for each seed."""
        validation = np.concatenate([self.validation[arm] for arm in self.searched], axis=1)
        test = np.concatenate([self.test[arm] for arm in self.searched], axis=1)
        return np.take_along_axis(test, validation.argmax(axis=1)[:, np.newaxis], axis=1)[:, 0]


def with_search(cells: Sequence[Cell]) -> list[Cell]:
    """Adds the cells of `SEARCH`, which follow from those of `uniform`.

    Of the three rates the one is taken whose cross-entropy on few validation rows is lowest: a quarter as many as are
    trained on. It costs the three trainings, and that of the run itself, which repeats one of them.
    """
    found = []
    for cell in cells:
        tried = [place for place, peak in enumerate(cell["peaks"]) if peak in TRIED]
        if cell["arm"] != BASELINE or not tried:
            continue
        best = min(tried, key=lambda place, few=cell["few"]: few[place])
        seconds = [cell["seconds"][place] for place in (*tried, best)]
        chosen = {key: [cell[key][best]] for key in ("validation", "few", "test")}
        found.append({**cell, **chosen, "arm": SEARCH, "peaks": [None], "seconds": [round(sum(seconds), 2)]})
    return [*cells, *found]


def scores(cells: Sequence[Cell]) -> list[Scores]:
    """Sorts cells by task and rows; a seed counts for a task where all arms of the file are there.

    Raises:
        SystemExit: No task has such a seed.
    """
    arms = [*dict.fromkeys(cell["arm"] for cell in cells)]
    found = []
    for task, rows in dict.fromkeys((cell["task"], cell["rows"]) for cell in cells):
        of_task = {(c["arm"], c["seed"]): c for c in cells if (c["task"], c["rows"]) == (task, rows)}
        seeds = [s for s in sorted({seed for _, seed in of_task}) if all((arm, s) in of_task for arm in arms)]
        if not seeds:
            continue
        peaks = max((of_task[arm, seeds[0]]["peaks"] for arm in arms), key=len)
        by_key = {
            key: {arm: np.array([of_task[arm, s][key] for s in seeds]) for arm in arms}
            for key in ("test", "validation", "seconds")
        }
        seconds = {arm: values.sum(axis=1) for arm, values in by_key["seconds"].items()}
        found.append(Scores(task, rows, tuple(seeds), tuple(peaks), by_key["test"], by_key["validation"], seconds))
    if not found:
        raise SystemExit("Not one seed of a task is complete. Go on with `--results FILE`.")
    return found


# -- Tables -----------------------------------------------------------------------------------------------------------


def name_of(each: Scores) -> str:
    """Returns task and rows: `digits, 20`."""
    return f"{each.task}, {each.rows}"


def tuned_table(all_scores: Sequence[Scores]) -> str:
    """Returns the accuracy of every arm at its tuned rate, a line for each task; the best tuned arm is bold."""
    arms = all_scores[0].searched
    lines = []
    for each in all_scores:
        means = {arm: each.tuned(arm).mean() for arm in arms}
        of_best = mean_text(each.tuned(each.best))
        cells = [f"**{means[arm]:.3f}**" if arm == each.best else f"{means[arm]:.3f}" for arm in arms]
        lines.append([f"{name_of(each)} ({len(each.seeds)})", *cells, of_best.partition(" ")[2]])
    return markdown(["task, rows (seeds)", *arms, "interval of the best"], lines)


def arm_table(all_scores: Sequence[Scores]) -> str:
    """Returns each arm over all tasks: its mean, its difference to `uniform`, and how far it is from the best tuned.

    The tests take a task at one size as a pair, with its mean over the seeds.
    """
    arms = [*all_scores[0].test]
    means = {arm: np.array([each.tuned(arm).mean() for each in all_scores]) for arm in arms}
    best = np.array([each.tuned(each.best).mean() for each in all_scores])
    others = [arm for arm in arms if arm != BASELINE]
    p_values = [sign_flip_p([*(means[arm] - means[BASELINE])]) for arm in others]
    corrected = dict(zip(others, holm(p_values), strict=True))
    lines = []
    for arm in arms:
        difference = (
            [mean_text(means[arm] - means[BASELINE], "+.3f"), f"{corrected[arm]:.3f}"] if arm in others else ["", ""]
        )
        behind = best - means[arm]
        within = f"{np.count_nonzero(behind <= POINT)} of {len(best)}"
        lines.append(
            [arm, f"{means[arm].mean():.3f}", *difference, within, f"{behind.mean():.3f}", f"{behind.max():.3f}"]
        )
    head = [
        "way",
        "mean of all tasks",
        "minus uniform",
        "p, corrected",
        "within a point of the best tuned",
        "behind it",
        "at most",
    ]
    return markdown(head, lines)


def default_table(all_scores: Sequence[Scores], default: str) -> str:
    """Returns the default beside the best tuned arm of each task, and beside what a search by validation rows gives."""
    lines = []
    for each in all_scores:
        ours, best = each.tuned(default), each.tuned(each.best)
        searched = each.best_by_validation()
        share = each.seconds[default].mean() / sum(each.seconds[arm].mean() for arm in each.searched)
        p = f"{sign_flip_p([*(ours - best)]):.3f}" if len(ours) > 1 else ""
        tuned = [f"{each.best}: {mean_text(best)}", mean_text(ours - best, "+.3f"), p]
        by_validation = [mean_text(searched), mean_text(ours - searched, "+.3f")]
        lines.append([name_of(each), mean_text(ours), *tuned, *by_validation, f"1/{1 / share:.0f}"])
    head = ["task, rows", default, "best tuned way", "difference", "p", "best by validation", "difference", "cost"]
    return markdown(head, lines)


def cost_text(all_scores: Sequence[Scores], default: str) -> str:
    """Returns what the default takes of the processor time of the grid, over all tasks."""
    ours = sum(each.seconds[default].mean() for each in all_scores)
    grid = sum(each.seconds[arm].mean() for each in all_scores for arm in each.searched)
    return f"{ours:.0f} s against {grid:.0f} s for the whole grid, 1/{grid / ours:.0f} of it"


def text(all_scores: Sequence[Scores], default: str) -> str:
    """Returns all tables in Markdown."""
    seeds = sorted({len(each.seeds) for each in all_scores})
    many = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else f"{seeds[0]} seed{'s' * (seeds[0] > 1)}"
    parts = [
        f"{len(all_scores)} tasks and sizes, {many} each. `±` is half of a 95 % interval of the mean (Student's "
        "t); p is that of an exact paired sign-flip test, between tasks corrected after Holm.",
        "### Each way over all tasks",
        arm_table(all_scores),
        "### Each task, at the rate chosen on validation rows",
        tuned_table(all_scores),
        f"### {default[0].upper()}{default[1:]} against the best tuned way of each task",
        default_table(all_scores, default),
        f"Processor time of training, compilation included: {cost_text(all_scores, default)}.",
        "### Accuracy against the peak rate",
        "![Test accuracy against the peak rate, a panel for each task and size](images/transfer.svg)",
    ]
    return "\n\n".join(parts)


# -- The plot ---------------------------------------------------------------------------------------------------------


def draw(all_scores: Sequence[Scores], path: Path, default: str) -> None:
    """Draws mean test accuracy against the peak rate, a panel for each task and size; without a rate, a dotted line."""
    columns = 4
    with style():
        lines = -(-len(all_scores) // columns)
        figure, axes = new_figure(lines, columns, size=(5.0 * columns, 4.0 * lines), layout="constrained")
        for axis, each in zip(axes, all_scores, strict=False):
            for number, arm in enumerate(each.searched):
                line = line_style(number) if number < 7 else {"color": GREY, "linestyle": ("-", "--", ":")[number - 7]}
                axis.plot(
                    each.peaks, each.test[arm].mean(axis=0), marker="o", markersize=3, label=arm, linewidth=2, **line
                )
            axis.axhline(each.test[default].mean(), color="black", linestyle=":", label=default)
            axis.set(xscale="log", title=f"{each.task}, {each.rows} rows")
        for axis in axes[len(all_scores) :]:
            axis.set_axis_off()
        axes[len(all_scores) - 1].set_xlabel("peak learning rate (of the head)")
        axes[0].set_ylabel("test accuracy")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5)
        finish(figure, path)
