"""What is predicted from what, where values and names say it, and where the user must."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.commands.new_choices import Wishes, choose, said_of
from finetune.data.survey import survey
from finetune.errors import FinetuneError


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name, head, rows):
    Path(name).write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return Path(name)


def chosen(path, ask=None, **wishes):
    return choose(survey(path), Wishes(path, **wishes), ask)


def refusal(path, **wishes):
    with pytest.raises(FinetuneError) as error:
        chosen(path, **wishes)
    return str(error.value)


def test_an_unclear_target_is_refused_with_the_candidates_or_asked_for():
    table = write("a.csv", "a,b,c", [(n / 7, n / 3, n % 4) for n in range(30)])
    assert refusal(table) == (
        "It is not clear which column is to be predicted. Candidates are `a`, `b`, `c`. Name it: `--target c`."
    )
    asked = []

    def ask(question, answers, default):
        asked.append((question, tuple(answers), default))
        return answers[0]

    assert chosen(table, ask).target.name == "a"
    assert asked == [("Which column is to be predicted?", ("a", "b", "c"), "c")]


def test_a_target_is_known_by_its_name_or_as_the_only_names_at_an_end():
    assert chosen(write("a.csv", "x,label,z", [(n / 7, n % 3, n % 4) for n in range(30)])).target.name == "label"
    assert chosen(write("b.csv", "x,z,kind", [(n / 7, n % 4, "ab"[n % 2]) for n in range(30)])).target.name == "kind"


def test_a_task_overrides_what_the_values_suggest_where_they_allow_it():
    stars = write("a.csv", "u,stars", [(n / 7, n % 5) for n in range(30)])
    assert [chosen(stars, target="stars", task=task).task for task in (None, "number")] == ["classes", "number"]
    assert "has none. Write `--task classes`." in refusal(stars, target="stars", task="labels")
    names = write("b.csv", "u,kind", [(n / 7, "ab"[n % 2]) for n in range(30)])
    assert "holds names. Remove `--task`" in refusal(names, task="number")


def test_a_column_that_is_missing_and_a_table_without_a_target_are_refused():
    rows = [(n, n % 5 + 1, "ABC"[n % 3], 1000.5 * (n % 5)) for n in range(60)]
    assert "There is no column `prize`. The columns are `id` (id), `rooms` (number)," in refusal(
        write("houses.csv", "id,rooms,town,price", rows), target="prize"
    )
    table = write("ids.csv", "id,code", [(n, f"x{n}y") for n in range(30)])
    assert refusal(table).startswith(
        "A recipe needs a target: a column of classes or numbers to predict from the others."
    )


def test_folders_of_classes_have_no_other_target():
    for name in ("red", "blue"):
        Path("photos", name).mkdir(parents=True)
        Image.new("RGB", (16, 16), name).save(Path("photos", name, "1.png"))
    assert "Folders of classes have classes alone. Received `--target a`." in refusal(Path("photos"), target="a")


def test_arrays_that_no_small_network_takes_need_a_network():
    np.savez("seq.npz", x=np.ones((20, 5, 4)), y=np.arange(20) % 2)
    assert refusal(Path("seq.npz")).startswith(
        "There is no small network for arrays of 20 rows of shape (5, 4). Name a network that takes them with `--model`"
    )


def test_what_is_looked_at_is_said():
    table = write("a.csv", "id,x,label", [(n, n / 7, n % 3) for n in range(30)])
    found = survey(table)
    assert said_of(found, chosen(table)) == [
        "predicted: `label`, a class, from all other columns, without `id`",
    ]
