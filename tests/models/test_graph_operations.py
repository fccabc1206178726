import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from finetune.errors import FinetuneError
from finetune.models.graph_operations import read_operations


class Words(tf.Module):
    """Looks words up in a table that is read from an asset."""

    def __init__(self, path):
        super().__init__()
        self.w = tf.Variable(tf.ones((3, 2)))
        lines = tf.lookup.TextFileInitializer(
            str(path), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
        )
        self.table = tf.lookup.StaticVocabularyTable(lines, 1)

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def __call__(self, x):
        return tf.nn.embedding_lookup(self.w, self.table.lookup(x))


class Net(tf.Module):
    """Computes with a matrix, after what a function does."""

    def __init__(self, act=lambda: None):
        super().__init__()
        self.w, self.act = tf.Variable(tf.ones((4, 3)), name="w"), act

    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32)])
    def __call__(self, x):
        self.act()
        return tf.matmul(x, self.w)


@pytest.fixture
def words(tmp_path):
    (tmp_path / "vocabulary.txt").write_text("a\nb\n")
    tf.saved_model.save(Words(tmp_path / "vocabulary.txt"), tmp_path / "words")
    return tmp_path / "words"


def outside(folder):
    return dict(read_operations(str(folder)).outside)


def edited(folder, edit):
    """Changes the graph in the file, as somebody would who wants to hide an operation."""
    path = folder / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    edit(saved.meta_graphs[0])
    path.write_bytes(saved.SerializeToString())
    return folder


def functions(meta, word):
    return [function for function in meta.graph_def.library.function if word in function.signature.name]


def test_the_saver_and_a_table_of_the_own_assets_do_not_count_also_when_saved_again(words, tmp_path):
    counts = read_operations(str(words)).counts
    assert {"SaveV2", "RestoreV2", "MergeV2Checkpoints", "InitializeTableFromTextFileV2"} <= set(counts)
    assert outside(words) == {}
    tf.saved_model.save(tf.saved_model.load(str(words)), tmp_path / "again")
    assert outside(tmp_path / "again") == {}


@pytest.mark.parametrize(("as_asset", "found"), [(True, {}), (False, {"InitializeTableFromTextFileV2": "files"})])
def test_a_table_in_a_graph_of_tensorflow_1_is_clean_if_its_words_were_saved_with_it(tmp_path, as_asset, found):
    (tmp_path / "vocabulary.txt").write_text("a\nb\n")
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.string, (None,), "x")
        columns = (tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER)
        table = tf.lookup.StaticHashTable(tf.lookup.TextFileInitializer(str(tmp_path / "vocabulary.txt"), *columns), -1)
        y = tf.gather(v1.get_variable("w", (2,), use_resource=True), tf.maximum(table.lookup(x), 0))
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        if not as_asset:
            v1.get_collection_ref(v1.GraphKeys.ASSET_FILEPATHS).clear()
        builder = v1.saved_model.Builder(str(tmp_path / "v1"))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {"serving_default": v1.saved_model.predict_signature_def({"x": x}, {"y": y})},
            main_op=v1.tables_initializer(),
            assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
        )
        builder.save()
    assert {"SaveV2", "RestoreV2"} <= set(read_operations(str(tmp_path / "v1")).counts)
    assert outside(tmp_path / "v1") == found


@pytest.mark.parametrize(
    ("act", "found"),
    [
        (lambda: tf.io.write_file("x", tf.io.read_file("y")), {"ReadFile": "files", "WriteFile": "files"}),
        (lambda: tf.io.matching_files("/home/*"), {"MatchingFiles": "files"}),
        (lambda: tf.print("x", output_stream="file:///tmp/x"), {"PrintV2": "files"}),
        (lambda: tf.py_function(lambda: 1.0, [], tf.float32), {"EagerPyFunc": "Python"}),
        (
            lambda: tf.raw_ops.RestoreV2(prefix="/x", tensor_names=["a"], shape_and_slices=[""], dtypes=[tf.float32]),
            {"RestoreV2": "files"},
        ),
        (lambda: tf.cond(tf.random.uniform(()) > 2, lambda: tf.io.read_file("y"), lambda: ""), {"ReadFile": "files"}),
        (lambda: tf.data.TextLineDataset("/etc/passwd").reduce("", lambda a, b: b), {"TextLineDataset": "files"}),
        (lambda: tf.print("x"), {}),
    ],
    ids=["files", "listing", "print", "python", "checkpoint", "branch", "dataset", "harmless"],
)
def test_what_a_graph_reaches_is_found_wherever_it_is(tmp_path, act, found):
    tf.saved_model.save(Net(act), tmp_path / "net")
    assert outside(tmp_path / "net") == found


def test_an_asset_that_leads_out_of_the_folder_is_a_file(words):
    def lead_out(meta):
        meta.asset_file_def[0].filename = "../../../etc/passwd"

    assert outside(edited(words, lead_out)) == {"InitializeTableFromTextFileV2": "files"}


def test_a_table_from_a_path_in_the_graph_is_a_file(words):
    def put_a_path(meta):
        function = functions(meta, "initializer")[0]
        path = function.node_def.add(name="path", op="Const")
        path.attr["value"].tensor.string_val.append(b"/etc/passwd")
        table = next(node for node in function.node_def if node.op.startswith("InitializeTable"))
        table.input[1] = "path:output:0"

    assert outside(edited(words, put_a_path)) == {"InitializeTableFromTextFileV2": "files"}


def test_the_saver_of_the_file_may_not_serve_something_else(tmp_path):
    def call_from_outside(meta):
        saver = functions(meta, "traced_restore")[0].signature.name
        node = functions(meta, "__call__")[0].node_def.add(name="hidden", op="StatefulPartitionedCall")
        node.attr["f"].func.name = saver

    tf.saved_model.save(Net(), tmp_path / "net")
    assert outside(edited(tmp_path / "net", call_from_outside)) == {"RestoreV2": "files"}


def test_what_restores_may_not_save_and_the_saver_may_not_read_files(tmp_path):
    def swap(meta):
        functions(meta, "traced_restore")[0].node_def.add(name="hidden", op="SaveV2")
        functions(meta, "traced_save")[0].node_def.add(name="hidden", op="ReadFile").input.append("file_prefix")

    tf.saved_model.save(Net(), tmp_path / "net")
    assert outside(edited(tmp_path / "net", swap)) == {"SaveV2": "files", "ReadFile": "files"}


def test_the_gradient_of_a_function_counts(tmp_path):
    @tf.custom_gradient
    def leaks(x):
        return x, lambda upstream: upstream + tf.strings.to_number(tf.io.read_file("secret"))

    class Leaking(Net):
        @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32)])
        def __call__(self, x):
            return tf.matmul(leaks(x), self.w)

    options = tf.saved_model.SaveOptions(experimental_custom_gradients=True)
    tf.saved_model.save(Leaking(), tmp_path / "net", options=options)
    assert outside(tmp_path / "net") == {"ReadFile": "files"}


def test_an_operation_of_no_known_library_is_named(tmp_path):
    tf.saved_model.save(Net(), tmp_path / "net")
    edited(tmp_path / "net", lambda meta: functions(meta, "__call__")[0].node_def.add(name="odd", op="OddOp"))
    assert outside(tmp_path / "net") == {"OddOp": "a library that is not TensorFlow's"}


def test_the_summary_counts_and_cuts(tmp_path):
    tf.saved_model.save(Net(lambda: tf.io.read_file("y")), tmp_path / "net")
    operations = read_operations(str(tmp_path / "net"))
    assert operations.summary().endswith("reach outside of it: ReadFile (files)")
    assert "and " in operations.summary(limit=3)
    assert operations.summary(limit=3).count(",") < operations.summary().count(",")


def test_a_file_that_is_no_graph_is_refused(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"\xff\xff")
    with pytest.raises(FinetuneError, match=r"a graph that can be read. `.*` cannot: .* Copy it again"):
        read_operations(str(tmp_path))
