import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from finetune.errors import FinetuneError, RestoreError
from finetune.files.checkpoint_index import check_index, check_single_file
from finetune.models.saved_module import load_saved_module
from finetune.pretrained.formats.readers import read_weights

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bombs():
    spec = importlib.util.spec_from_file_location("bombs", ROOT / "scripts" / "torturing" / "bombs.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["bombs"] = module  # its dataclass looks its own module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["bombs"]


def test_the_indexes_that_tensorflow_writes_pass(tmp_path):
    kinds = {"a": "float32", "b": "int64", "c": "bfloat16", "d": "bool", "e": "complex64", "f": "float64"}
    held = {name: tf.Variable(tf.zeros((3, 4), kind)) for name, kind in kinds.items()}
    held |= {"empty": tf.Variable(tf.zeros((0, 5))), "scalar": tf.Variable(1.0), "text": tf.Variable(["hello", "you"])}
    tf.train.Checkpoint(**held).save(tmp_path / "objects")
    many = [tf.Variable(tf.fill((2,), float(n)), name=f"a/long/name/{n}") for n in range(500)]  # several blocks
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.get_variable("parts", (10, 3), partitioner=tf.compat.v1.fixed_size_partitioner(3))
        for n in range(len(many)):
            tf.compat.v1.get_variable(f"a/long/name/{n}", (2,))
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver(sharded=True).save(session, str(tmp_path / "saver"))
    check_index(tmp_path / "objects-1.index")
    check_index(tmp_path / "saver.index")
    assert len(read_weights(tmp_path / "saver").tensors) == 501


@pytest.mark.filterwarnings("ignore")  # the format is deprecated
def test_the_checkpoints_of_the_first_format_that_tensorflow_writes_pass(tmp_path):
    v1 = tf.compat.v1
    kinds = ["float16", "float32", "float64", "complex64", "int8", "uint8", "int32", "int64", "bool"]
    with tf.Graph().as_default(), v1.Session() as session:
        for kind in kinds:
            v1.get_variable(kind, initializer=tf.cast(tf.reshape(tf.range(12), (3, 4)), kind))
        v1.get_variable("scalar", initializer=1.0)
        v1.get_variable("empty", (0, 3))
        v1.get_variable("text", initializer=tf.constant(["a", "bcd"]))
        v1.get_variable("parts", (10, 3), partitioner=v1.fixed_size_partitioner(3))
        for n in range(300):  # several blocks
            v1.get_variable(f"a/long/name/{n}", (20,))
        session.run(v1.global_variables_initializer())
        v1.train.Saver(write_version=v1.train.SaverDef.V1).save(session, str(tmp_path / "first"))
    check_single_file(tmp_path / "first")
    tensors = {tensor.name: tensor for tensor in read_weights(tmp_path / "first").tensors}
    assert np.array_equal(tensors["float32"].read(), np.arange(12).reshape(3, 4))
    assert len([name for name in tensors if name.startswith("a/long")]) == 300


@pytest.mark.parametrize(
    ("shape", "count", "dtype", "said"),
    [
        ((-4,), 16, 1, r"its index gives `w` the shape \(-4,\)"),
        ((2**62, 2**62), 16, 1, r"its index gives `w` the shape \(46116\d+, 46116\d+\)"),
        ((2**30,), 16, 1, "it promises 1,073,741,824 values of `w`, and has 16"),
        ((16,), 17, 1, "it promises 16 values of `w`, and has 17"),
        ((16,), 16, 99, "its index gives `w` the type 99, which does not exist"),
    ],
)
def test_a_checkpoint_of_the_first_format_that_says_what_cannot_be_never_reaches_tensorflow(
    bombs, tmp_path, shape, count, dtype, said
):
    path = bombs.single_file_checkpoint(tmp_path, shape, count, "c", dtype=dtype)
    with pytest.raises(ValueError, match=said):
        check_single_file(path)
    with pytest.raises(RestoreError, match=f"complete and undamaged. Reading `.*` failed: {said}"):
        read_weights(path)


@pytest.mark.parametrize("shape", [(16,), (2, 8), ()])
def test_a_checkpoint_of_the_first_format_that_is_right_is_read_by_tensorflow_as_well(bombs, tmp_path, shape):
    path = bombs.single_file_checkpoint(tmp_path, shape, int(np.prod(shape)), "c")
    check_single_file(path)
    (tensor,) = read_weights(path).tensors
    assert np.array_equal(tensor.read(), np.zeros(shape))


@pytest.mark.parametrize(
    ("shape", "size", "said"),
    [
        ((-4,), 16, r"its index gives `w` the shape \(-4,\)"),  # TensorFlow ends the process
        ((2**62, 2**62), 64, r"its index gives `w` the shape \(46116\d+, 46116\d+\)"),  # and here
        ((1,) * 300, 4, r"its index gives `w` the shape"),
        ((2**30,), 64, "its index gives `w` 4,294,967,296 bytes by its shape, and 64 in its file"),
        ((2**20,), 2**22, "its index puts `w` at bytes 0 to 4,194,304 of a file of 64"),
        ((4,), -16, "its index puts `w` at bytes 0 to -16 of a file of 64"),
    ],
)
def test_an_index_that_says_what_cannot_be_never_reaches_tensorflow(bombs, tmp_path, shape, size, said):
    path = bombs.checkpoint_index(tmp_path, shape, size, "c")
    with pytest.raises(ValueError, match=said):
        check_index(path)
    with pytest.raises(RestoreError, match=f"complete and undamaged. Reading `.*` failed: {said}"):
        read_weights(tmp_path / "c")


def test_an_index_that_is_right_is_read_by_tensorflow_as_well(bombs, tmp_path):
    path = bombs.checkpoint_index(tmp_path, (16,), 64, "c")  # or the refusals above would prove nothing
    check_index(path)
    (tensor,) = read_weights(tmp_path / "c").tensors
    assert tensor.shape == (16,)


def test_a_saved_model_with_such_an_index_is_refused(bombs, tmp_path):
    module = tf.Module()
    module.w = tf.Variable(tf.ones(3))
    module.__call__ = tf.function(lambda x: x * module.w, input_signature=[tf.TensorSpec((3,))])
    tf.saved_model.save(module, str(tmp_path / "saved"))
    made = bombs.checkpoint_index(tmp_path, (-4,), 16, "c")
    shutil.copy(made, tmp_path / "saved" / "variables" / "variables.index")
    with pytest.raises(FinetuneError, match=r"cannot be loaded: its index gives `w` the shape \(-4,\)"):
        load_saved_module(tmp_path / "saved")


@pytest.mark.parametrize("name", ["c-1.index", "first"])
def test_damaged_bytes_are_errors_of_python_alone(bombs, tmp_path, name):
    bombs.single_file_checkpoint(tmp_path, (4, 4), 16, "first")
    check = check_single_file if name == "first" else check_index
    tf.train.Checkpoint(a=tf.Variable(tf.zeros((3, 4))), b=tf.Variable(1)).save(tmp_path / "c")
    sound, random = (tmp_path / name).read_bytes(), np.random.default_rng(0)
    outcomes = set()
    for _ in range(500):
        damaged = bytearray(sound[: random.integers(1, len(sound) + 1)] if random.random() < 0.3 else sound)
        for place in random.integers(0, len(damaged), 3):
            damaged[place] = random.integers(0, 256)
        (tmp_path / name).write_bytes(damaged)
        try:
            check(tmp_path / name)
            outcomes.add("sound")
        except Exception as error:
            outcomes.add(type(error).__name__)
    assert outcomes <= {"sound", "ValueError", "DecodeError"}
    assert "ValueError" in outcomes


def test_tensorflow_itself_would_end_the_process(bombs, tmp_path):
    """Where this fails, TensorFlow has been repaired, and the check of shapes may go."""
    bombs.checkpoint_index(tmp_path, (-4,), 16, "c")
    code = f"import tensorflow as tf; tf.train.load_checkpoint({str(tmp_path / 'c')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode < 0
