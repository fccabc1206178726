"""What can be fetched, and the command for a file that is missing."""

import os
import re
from pathlib import Path

from finetune.files.fetchable import FETCHABLE, fetching_command

ROOT = Path(__file__).resolve().parents[2]


def test_a_file_of_something_fetchable_is_told_with_its_command_wherever_the_recipes_lie(tmp_path):
    assert fetching_command(Path("recipes/minilm/model.safetensors")) == "finetune fetch minilm"
    assert fetching_command(Path("recipes/minilm").absolute()) == "finetune fetch minilm"
    assert fetching_command(Path("chords")) == "finetune fetch chords --out ."
    assert fetching_command(Path("tried/drawings/animal")) == "finetune fetch drawings --out tried"
    there = os.path.relpath(tmp_path)
    assert fetching_command(tmp_path / "fer/emotion_model.hdf5") == f"finetune fetch fer --out {there}"


def test_other_files_have_no_command():
    for path in ("recipes/weights/mnist_cnn.weights.h5", "minilm/mine.safetensors", "a/b/c", "minilm/a/b/config.json"):
        assert fetching_command(Path(path)) == ""


def test_every_package_is_pinned_and_its_folder_is_not_part_of_the_repository():
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    for name, item in FETCHABLE.items():
        assert f"/recipes/{name}/" in ignored
        assert item.files
        if item.package:
            assert re.fullmatch(r"[0-9a-f]{64}", item.package.sha256)
            assert "==" in item.package.requirement
