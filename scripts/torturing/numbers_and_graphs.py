"""Numbers that are none, graphs of others, sound files, links to other files."""

import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np

from torturing.harness import check, environment, finetune, python, tiny

RESTORED = "restore: {from: w.weights.h5}\n"
KERNEL, VARIANCE = "layers/dense/vars/0", "layers/batch_normalization/vars/3"


@check(
    "numbers",
    [(KERNEL, "nan"), (KERNEL, "inf"), (VARIANCE, "nan"), (VARIANCE, "-1"), ("layers/dense_2/vars/1", "nan")],
)
def a_weight_that_is_no_number_never_reaches_the_saved_model(folder: Path, variant: tuple[str, str]) -> None:
    path, value = variant
    tiny(folder, extra=RESTORED)
    shutil.copy(folder / "sound.weights.h5", folder / "w.weights.h5")
    with h5py.File(folder / "w.weights.h5", "r+") as file:
        file[path][0] = float(value)  # pyright: ignore[reportIndexIssue] - h5py is untyped
    said = finetune(folder, "run", "r.yaml", "--out", "out", codes=(1, 2))
    assert "error: " in said
    assert not (folder / "out" / "model.keras").exists()


_ALL_FINITE = """
import keras, numpy as np
for weight in keras.models.load_model("out/model.keras").weights:
    assert np.isfinite(weight.numpy()).all(), weight.path
"""


@check("numbers", ["groups.head.learning_rate=1e30", "groups.head.optimizer={name: adamw, weight_decay: 1e30}"])
def settings_that_end_in_no_numbers_fail_the_run(folder: Path, setting: str) -> None:
    tiny(folder)
    said = finetune(folder, "run", "r.yaml", "--out", "out", "--set", setting, codes=(0, 1, 2))
    if (folder / "out" / "model.keras").exists():
        python(folder, _ALL_FINITE)
        assert "warning: " in said


_GRAPH = """
import tensorflow as tf
class M(tf.Module):
    def __init__(self):
        super().__init__()
        self.w = tf.Variable(tf.ones((4, 3)), name="w")
    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32)])
    def __call__(self, x):
        {op}
        return tf.nn.softmax(tf.matmul(x, self.w))
m = M()
tf.saved_model.save(m, "sm", signatures=m.__call__.get_concrete_function())
"""
_OPERATIONS = {
    "write": 'tf.io.write_file("OWNED", tf.io.read_file("secret.txt"))',
    "print": 'tf.print("x", output_stream="file://OWNED")',
    "branch": 'tf.cond(tf.reduce_sum(x) > 1e30, lambda: 0, lambda: (tf.io.write_file("OWNED", "x"), 0)[1])',
    "map": 'tf.map_fn(lambda v: (tf.io.write_file("OWNED", "x"), v)[1], x)',
}
_HUB = """model: {hub: sm}
data: {npz: d.npz}
groups: [{name: all, rest: true, optimizer: sgd, learning_rate: 1.0e-3}]
train: {epochs: 1, loss: sparse_categorical_crossentropy}
"""


@check("graphs", list(_OPERATIONS))
def the_graph_of_a_stranger_touches_no_file_unasked(folder: Path, operation: str) -> None:
    tiny(folder)
    (folder / "secret.txt").write_text("SECRET")
    python(folder, _GRAPH.format(op=_OPERATIONS[operation]))
    (folder / "h.yaml").write_text(_HUB)
    for arguments in (["plan", "h.yaml"], ["plan", "h.yaml", "--allow-code", "hub:sm"], ["inspect", "sm"]):
        finetune(folder, *arguments, codes=(0, 2))
        assert not (folder / "OWNED").exists(), arguments
    for consent in ([], ["--allow-code", "hub:sm"]):
        finetune(folder, "reference", "sm", "r.npz", "--input", "d.npz", *consent, codes=(0, 2))
        assert not (folder / "OWNED").exists(), consent


_READ = """
import resource, sys
import h5py, numpy, subprocess, zipfile
from finetune.errors import FinetuneError
from finetune.pretrained.formats.readers import read_weights
if len(sys.argv) > 1:
    limit = int(sys.argv[2])
    resource.setrlimit(getattr(resource, sys.argv[1]), (limit, limit))
for name in ("sound.weights.h5", "net.keras"):
    try:
        read_weights(name)
    except (FinetuneError, MemoryError, OSError) as error:
        print(type(error).__name__, error)
"""
LIMITS = {"open files": ("RLIMIT_NOFILE", 3), "memory": ("RLIMIT_AS", 2**28), "processes": ("RLIMIT_NPROC", 1)}


@check("sound files", [*LIMITS, "full TMPDIR", "no HOME", "odd environment", "shadowed modules"])
def a_sound_file_is_never_called_damaged(folder: Path, lacks: str) -> None:
    tiny(folder)
    env = environment(folder)
    if lacks == "full TMPDIR":
        env["TMPDIR"] = "/proc/none"
    elif lacks == "no HOME":
        del env["HOME"]
    elif lacks == "odd environment":
        env["PYTHONSTARTUP"] = env["PYTHONUSERBASE"] = "/nowhere"
    elif lacks == "shadowed modules":
        for name in ("h5py", "numpy", "json", "zipfile"):
            (folder / f"{name}.py").write_text("raise SystemExit(7)")
    command = [sys.executable, "-P", "-c", _READ, *map(str, LIMITS.get(lacks, ()))]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-800:]
    assert "damaged" not in done.stdout, done.stdout
    if lacks not in LIMITS:
        assert not done.stdout, done.stdout


def _external(file: h5py.File, how: str) -> None:
    vars = file.create_group("layers/d/vars")
    if how == "link":
        vars["0"] = h5py.ExternalLink("secret.h5", "/x")
    elif how == "link to a group":
        file["layers/e"] = h5py.ExternalLink("secret.h5", "/")
    elif how == "soft link to a link":
        file["hidden"] = h5py.ExternalLink("secret.h5", "/x")
        vars["0"] = h5py.SoftLink("/hidden")
    elif how == "values":
        vars.create_dataset("0", (8,), "u1", external=[("secret.h5", 0, 8)])
    else:
        layout = h5py.VirtualLayout((3,), "f8")
        layout[:] = h5py.VirtualSource("secret.h5", "x", (3,))
        vars.create_virtual_dataset("0", layout)


@check("links", ["link", "link to a group", "soft link to a link", "values", "virtual"])
def a_file_of_weights_reads_no_other_file(folder: Path, how: str) -> None:
    with h5py.File(folder / "secret.h5", "w") as file:
        file["x"] = np.array([11111.0, 22222.0, 33333.0])
    with h5py.File(folder / "w.weights.h5", "w") as file:
        _external(file, how)
    said = finetune(folder, "inspect", "w.weights.h5", codes=(2,))
    assert "point to another file" in said, said


@check("links", ["restore.from", "restore.verify", "model.keras_file", "data.npz", "data.tokenizer.file", "extends"])
def the_contents_of_other_files_are_not_shown(folder: Path, key: str) -> None:
    tiny(folder)
    (folder / "secret").write_text("SECRET-TOKEN: {5f2c\n\tmore")
    (folder / "t.csv").write_text("a,label\nx,1\ny,0\n")
    text = (folder / "r.yaml").read_text()
    options = []
    if key == "extends":
        text = "extends: secret\n"
    elif key == "restore.verify":
        text += "restore: {from: sound.weights.h5, verify: secret}\n"
    elif key == "data.tokenizer.file":
        table = "{table: t.csv, inputs: a, target: label, tokenizer: {file: secret, length: 4}}"
        text = text.replace("{npz: d.npz}", table)
    else:
        options = ["--set", f"{key}={folder}/secret"]
    (folder / "r.yaml").write_text(text)
    said = finetune(folder, "plan", "r.yaml", *options, codes=(2,))
    assert "5f2c" not in said, said
