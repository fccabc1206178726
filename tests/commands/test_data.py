"""`finetune data` shows what was understood, and draws the images that the network will see."""

from io import StringIO

import keras
import numpy as np
from PIL import Image
from rich.console import Console

from finetune.commands.data import _target_text, show_data


def shown(recipe, *overrides, sheet=None):
    said = StringIO()
    described = show_data(recipe, overrides=overrides, sheet=sheet, console=Console(file=said, width=200))
    return described, said.getvalue()


def test_images_are_shown_with_their_splits_and_classes_and_on_a_sheet(photos):
    sheet = photos.parent / "sheet.png"
    described, said = shown(photos, sheet=sheet)
    assert "data: 12 rows to train on, 6 to test, 6 to validate; 3 classes" in said
    assert "size: (8, 8)" in said
    assert described["rows_of_classes"]["train"] == [4, 4, 4]
    assert f"written: {sheet}, 12 training images" in said
    pixels = np.asarray(Image.open(sheet))
    # The first row of each class comes before the second of any: blue, green, red.
    middles = [pixels[8 + 56, 8 + 56 + 120 * place].argmax() for place in range(3)]
    assert middles == [2, 1, 0]


def test_targets_below_images_are_the_class_all_labels_or_the_numbers():
    names = ["round", "square"]
    targets = [np.int64(1), np.array([0.0, 1.0]), np.array([1.0, 1.0]), np.array([0.0, 0.0])]
    assert [_target_text(target, names) for target in targets] == ["square", "square", "round|square", ""]
    assert _target_text(np.array([1.5, 2.0], np.float32), []) == "1.5, 2.0"
    assert _target_text(np.float32(13.2), []) == "13.2"
    assert _target_text(np.zeros((4, 4)), names) == ""


def test_columns_are_shown_with_what_was_fitted_to_them(photos):
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(photos.parent / "vector.keras")
    lines = ["size,colour,kind"] + [f"{n},{'red' if n % 2 else 'blue'},{'ab'[n % 2]}" for n in range(20)]
    (photos.parent / "table.csv").write_text("\n".join(lines))
    table = f"data={{table: {photos.parent / 'table.csv'}, inputs: [size, colour], target: kind}}"
    described, said = shown(photos, f"model={{keras_file: {photos.parent / 'vector.keras'}}}", table)
    assert "colour" in said
    assert "blue, red" in said
    assert described["class_names"] == ["a", "b"]
    assert "mean " in said


def test_arrays_are_shown_with_type_shape_and_range_and_give_no_sheet(recipe):
    sheet = recipe.parent / "sheet.png"
    described, said = shown(recipe, sheet=sheet)
    assert "no sheet is written: there are no images" in said
    assert not sheet.exists()
    assert "kind: npz" in said
    x, y = described["arrays"]
    assert (x["type"], x["shape"], y["name"]) == ("float32", [6], "y")
    assert [line.split() for line in said.splitlines() if line.strip().startswith("y ")] == [
        ["y", "int64", "()", "0", "2"]
    ]


def test_augmented_rows_are_on_the_sheet_below_the_images(photos):
    plain, augmented = photos.parent / "plain.png", photos.parent / "augmented.png"
    shown(photos, sheet=plain)
    shown(photos, "data.augment=[{layer: RandomInvert, factor: 1.0}]", sheet=augmented)
    before, after = (np.asarray(Image.open(path)).astype(int) for path in (plain, augmented))
    assert after.shape[0] == before.shape[0] + 3 * (before.shape[0] - 8) // 2  # 2 lines of images, and 3 epochs
    np.testing.assert_allclose(after[8:120, 8:120], before[8:120, 8:120], atol=5)  # black is that of the whole sheet
    below = after[8 + 2 * 134 : 120 + 2 * 134, 8:120]
    np.testing.assert_allclose(below, 255 - before[8:120, 8:120], atol=5)
