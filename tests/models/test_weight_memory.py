"""A network that asks for too much is refused before memory is taken for it."""

import json
import resource
import zipfile
from math import prod

import h5py
import keras
import pytest

from finetune.errors import FinetuneError
from finetune.models.builders import load_keras_file
from finetune.models.heads import add_head
from finetune.models.weight_memory import limited_to_file, limited_to_memory


def small(path):
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, name="body"), keras.layers.Dense(2, name="head")]
    )
    model.save(path)
    return path


def with_units(path, units):
    """Exchanges the units of the first layer in the configuration of a file; the weights stay as they are."""
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            file.attrs["model_config"] = json.dumps(changed(json.loads(file.attrs["model_config"]), units))
        return path
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["config.json"] = json.dumps(changed(json.loads(parts["config.json"]), units)).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def changed(config, units):
    layer = next(each for each in config["config"]["layers"] if each["config"]["name"] == "body")
    layer["config"]["units"] = units
    return config


@pytest.mark.filterwarnings("ignore:.*HDF5.*")
@pytest.mark.parametrize("name", ["net.keras", "net.h5"])
def test_a_small_file_that_asks_for_a_huge_layer_is_refused_and_takes_no_memory(tmp_path, name):
    path = with_units(small(tmp_path / name), 10**9)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FinetuneError) as error:
        load_keras_file(path)
    message = str(error.value)
    size = path.stat().st_size
    assert message.startswith(f"A file of {size:,} bytes may hold 104,857,600 bytes")
    assert "holds 16,000,000,000." in message
    assert "FINETUNE_MAX_SIZE=16GB" in message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_many_layers_count_together(tmp_path):
    path = tmp_path / "net.keras"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(10, name="body")]).save(path)
    dense = [keras.layers.Dense(1_000, name=f"d{n}") for n in range(60)]
    with pytest.raises(FinetuneError, match="holds 108,"), limited_to_file(path):
        keras.Sequential([keras.Input((1_000,)), *dense])  # each takes 4 MB


@pytest.mark.parametrize("widths", [{"classes": 10**12}, {"classes": 3, "units": [10**9, 10**9]}])
def test_a_head_that_no_memory_holds_is_refused_before_it_is_made(widths):
    backbone = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
    with pytest.raises(FinetuneError) as error, limited_to_memory():
        add_head(backbone, **widths)
    units = 10**12 if "units" not in widths else 10**9
    assert "The weights of a network must fit into memory. With `" in str(error.value)
    assert f"of shape `(8, {units})`" in str(error.value) or f"of shape `({units}, {units})`" in str(error.value)
    assert "Choose smaller sizes, or a machine with more memory." in str(error.value)


def test_what_a_function_in_the_block_raises_and_catches_does_not_hide_the_refusal():
    def build():
        try:
            keras.layers.Dense(10**12).build((None, 10))
        except Exception as error:
            raise ValueError("it did not work") from error

    with pytest.raises(FinetuneError, match="must fit into memory"), limited_to_memory():
        build()
    with pytest.raises(ValueError, match="other"), limited_to_memory():
        raise ValueError("other")


def test_a_network_that_fits_is_made_as_ever(tmp_path):
    path = small(tmp_path / "net.keras")
    with limited_to_memory():
        model = load_keras_file(path)
    assert sum(prod(weight.shape) for weight in model.weights) == 4 * 3 + 3 + 3 * 2 + 2
