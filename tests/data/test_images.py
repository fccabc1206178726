"""Images in files: found, decoded and resized as Pillow does it, whatever their kind."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from finetune.data.images import find_images, image_rows
from finetune.errors import DataError

_RED, _GREEN = np.meshgrid(np.linspace(0, 250, 20), np.linspace(0, 250, 12), indexing="ij")
PICTURE = np.stack([_RED, _GREEN, np.full((20, 12), 99)], -1).astype(
    "uint8"
)  # 20 high, 12 wide: red rises downwards, green to the right


@pytest.fixture
def save(tmp_path):
    def save(name, picture=PICTURE, mode=None, **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        (image.convert(mode) if mode else image).save(path, **options)
        return path

    return save


def pixels(path, size=(20, 12), **options):
    return image_rows([path], size=size, **options).take(tf.constant([0], tf.int64))[0].numpy()


# -- Every kind of file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.png", "RGB", {}),
        ("a.png", "P", {}),
        ("a.png", "RGBA", {}),
        ("a.bmp", "RGB", {}),
        ("a.webp", "RGB", {"lossless": True}),
        ("a.gif", "P", {}),
        ("a.jpg", "RGB", {"quality": 98}),
        ("a.jpg", "CMYK", {"quality": 98}),
        ("A.JPEG", "RGB", {"quality": 98, "progressive": True}),
    ],
)
def test_every_format_gives_the_values_that_pillow_gives(save, name, mode, options):
    path = save(name, mode=mode, **options)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB")).astype("float32")
    np.testing.assert_allclose(pixels(path), expected, atol=1)


@pytest.mark.parametrize("name", ["grey.png", "grey.jpg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_images_have_as_many_channels_as_the_network_takes(save, name, channels):
    image = pixels(save(name, mode="L"), channels=channels)
    assert image.shape == (20, 12, channels)
    with Image.open(save(name, mode="L")) as grey:
        np.testing.assert_allclose(image[..., -1], np.asarray(grey), atol=1)


def test_colours_become_grey(save):
    expected = np.asarray(Image.fromarray(PICTURE).convert("L"))
    np.testing.assert_allclose(pixels(save("a.png"), channels=1)[..., 0], expected, atol=1)


def test_sixteen_bits_keep_their_brightness(save):
    deep = (np.linspace(0, 1, 240).reshape(20, 12) * 65535).astype("uint16")
    np.testing.assert_allclose(pixels(save("deep.png", deep), channels=1)[..., 0], deep / 257, atol=0.6)


def test_transparent_parts_are_white(save):
    clear = np.zeros((20, 12, 4), "uint8")
    clear[:10] = (200, 0, 0, 255)
    clear[10:, :, 0] = 77  # a colour that must not show
    image = pixels(save("clear.png", clear))
    assert (image[:10] == (200, 0, 0)).all()
    assert (image[10:] == 255).all()


@pytest.mark.sample(6)
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_camera_is_turned_back(save, name, orientation):
    turned = {
        1: PICTURE,
        2: PICTURE[:, ::-1],
        3: PICTURE[::-1, ::-1],
        4: PICTURE[::-1],
        5: PICTURE.transpose(1, 0, 2),
        6: np.rot90(PICTURE, 1),
        7: PICTURE[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(PICTURE, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(
        name, np.ascontiguousarray(turned), exif=exif, **({"quality": 100, "subsampling": 0} if name == "a.jpg" else {})
    )
    np.testing.assert_allclose(pixels(path), PICTURE.astype("float32"), atol=4)


def test_of_an_animation_the_first_picture_is_taken(save):
    second = Image.fromarray(np.zeros_like(PICTURE))
    grey = np.full((20, 12, 3), 128, "uint8")
    path = save("a.gif", grey, save_all=True, append_images=[second])
    assert (pixels(path) == 128).all()


# -- Sizes -----------------------------------------------------------------------------------------------------------


def test_an_image_that_has_the_size_keeps_its_values(save):
    for resize in ("pad", "crop", "stretch"):
        np.testing.assert_array_equal(pixels(save("a.png"), resize=resize), PICTURE.astype("float32"))


def test_pad_keeps_the_whole_image_and_its_proportions(save):
    image = pixels(save("a.png", np.full((20, 10, 3), 200, "uint8")), size=(10, 10))
    assert (image[:, :2] == 0).all()
    assert (image[:, 8:] == 0).all()
    np.testing.assert_allclose(image[:, 3:7], 200, atol=0.1)


def test_crop_fills_the_size_from_the_middle(save):
    picture = np.zeros((20, 10, 3), "uint8")
    picture[5:15] = 200
    np.testing.assert_allclose(pixels(save("a.png", picture), size=(10, 10), resize="crop"), 200, atol=0.1)


def test_stretch_fills_the_size_with_the_whole_image(save):
    picture = np.zeros((20, 10, 3), "uint8")
    picture[:10] = 200
    image = pixels(save("a.png", picture), size=(10, 10), resize="stretch")
    np.testing.assert_allclose(image[:4], 200, atol=0.01)
    assert (image[6:] == 0).all()


def test_a_fine_pattern_becomes_its_mean_and_not_a_coarse_pattern(save):
    stripes = np.zeros((64, 64, 3), "uint8")
    stripes[:, ::2] = 200
    np.testing.assert_allclose(pixels(save("a.png", stripes), size=(8, 8))[1:-1, 1:-1], 100, atol=3)
    stripes[:, 2::4] = 0  # of which the four pixels in the middle of an area show another mean
    np.testing.assert_allclose(pixels(save("b.png", stripes), size=(8, 8))[1:-1, 1:-1], 50, atol=3)


def test_an_axis_that_grows_beside_one_that_shrinks_is_smooth(save):
    stripes = np.zeros((4, 64, 3), "uint8")
    stripes[:, ::2] = np.array([0, 60, 120, 180]).reshape(4, 1, 1)
    rows = pixels(save("a.png", stripes), size=(8, 8), resize="stretch")[:, 2, 0]
    np.testing.assert_allclose(rows, np.array([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]) * 30, atol=2)


@pytest.mark.sample(4)
@pytest.mark.parametrize("resize", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("shape", [(640, 480), (97, 211), (1500, 700)])
def test_a_large_photo_looks_as_pillow_shrinks_it(save, resize, shape):
    ramp = np.linspace(0, 250, shape[0] * shape[1]).reshape(shape)
    noise = np.random.default_rng(0).integers(-30, 30, (*shape, 3))
    photo = np.clip(ramp[..., np.newaxis] + noise, 0, 255).astype("uint8")
    path = save("photo.jpg", photo, quality=95, subsampling=0)
    with Image.open(path) as image:
        if resize == "stretch":
            expected = image.resize((48, 40), Image.Resampling.BILINEAR)
        elif resize == "pad":
            expected = ImageOps.pad(image, (48, 40), Image.Resampling.BILINEAR)
        else:
            expected = ImageOps.fit(image, (48, 40), Image.Resampling.BILINEAR)
    difference = pixels(path, size=(40, 48), resize=resize) - np.asarray(expected).astype("float32")
    inside = difference[:, 12:36]  # where a padded image begins may differ by a pixel
    assert np.abs(inside).mean() < 6


def test_the_range_of_values_can_be_chosen(save):
    picture = np.zeros((4, 4, 3), "uint8")
    picture[0] = 255
    image = pixels(save("a.png", picture), size=(4, 4), value_range=(-1, 1))
    assert (image[0] == 1).all()
    assert (image[1:] == -1).all()


# -- Rows ------------------------------------------------------------------------------------------------------------


def test_rows_come_in_the_order_of_the_indices_also_in_a_graph(save):
    rows = image_rows([save(f"{n}.png", np.full((4, 4, 3), n, "uint8")) for n in range(5)], size=(4, 4))
    taken = tf.function(rows.take)(tf.constant([3, 0, 3], tf.int64))
    assert taken[:, 0, 0, 0].numpy().tolist() == [3, 0, 3]
    assert len(rows) == 5


def test_the_fingerprint_changes_with_the_files_and_with_how_they_are_read(save):
    path = save("a.png")
    same, smaller = image_rows([path], size=(4, 4)), image_rows([path], size=(4, 5))
    assert same.fingerprint == image_rows([path], size=(4, 4)).fingerprint != smaller.fingerprint
    save("a.png", np.zeros((9, 9, 3), "uint8"))
    assert image_rows([path], size=(4, 4)).fingerprint != same.fingerprint


def test_files_that_are_no_images_are_named_with_the_reason(save, tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.jpg").touch()
    paths = [save("good.png"), tmp_path / "text.png", tmp_path / "empty.jpg"]
    with pytest.raises(DataError) as caught:
        image_rows(paths, size=(4, 4))
    said = str(caught.value)
    assert said.startswith("Image files must be readable. 2 of 3 are not: `")
    assert "text.png` (not an image), `" in said
    assert "empty.jpg` (empty). Replace or remove them." in said


# -- Folders ---------------------------------------------------------------------------------------------------------


def found(folder):
    files = find_images(folder)
    return list(zip(files.paths.names, files.labels.tolist(), files.splits.tolist(), strict=True))


def test_each_folder_is_a_class_and_files_come_sorted(save, tmp_path):
    for name in ("pets/dog/b.png", "pets/cat/z.jpg", "pets/cat/deep/a.PNG", "pets/cat/.hidden.png", "pets/.git/a.png"):
        save(name)
    (tmp_path / "pets/cat/notes.txt").touch()
    assert found(tmp_path / "pets") == [
        ("cat/deep/a.PNG", "cat", ""),
        ("cat/z.jpg", "cat", ""),
        ("dog/b.png", "dog", ""),
    ]


def test_folders_named_after_splits_say_the_split(save, tmp_path):
    for name in ("train/cat/a.png", "test/cat/b.png", "validation/dog/c.png"):
        save(f"pets/{name}")
    assert {(label, split) for _, label, split in found(tmp_path / "pets")} == {
        ("cat", "train"),
        ("cat", "test"),
        ("dog", "validation"),
    }


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["pets/a.png", "pets/b.png"], "holds no folders, and 2 images. Move the images of each class into a folder"),
        (["pets/train/cat/a.png", "pets/valdation/cat/a.png"], "also holds `valdation`. Did you mean `validation`"),
        (["pets/cat/a.png", "pets/dog/a.tiff"], "`dog` in `"),
        (["pet/cat/a.png"], "Images lie in a folder. `"),
    ],
)
def test_folders_of_another_shape_are_explained(save, tmp_path, names, said):
    for name in names:
        save(name)
    with pytest.raises(DataError) as caught:
        find_images(tmp_path / "pets")
    assert said in str(caught.value)


def test_a_graph_has_no_branches_that_no_file_needs(tmp_path):
    for name, size in (("a.jpg", (300, 200)), ("b.jpg", (200, 100)), ("c.png", (500, 40))):
        Image.new("RGB", size, "red").save(tmp_path / name)

    def branches(*names):
        rows = image_rows([tmp_path / name for name in names], size=(128, 128))
        graph = tf.function(rows.take_row).get_concrete_function(tf.TensorSpec((), tf.int64)).graph
        return {op.type for op in graph.get_operations()} & {"If", "StatelessIf", "Case", "StatelessCase"}

    assert branches("b.jpg") == set()
    assert {name.removeprefix("Stateless") for name in branches("a.jpg", "b.jpg")} == {"Case"}
    assert branches("c.png") == {"StatelessIf"}
