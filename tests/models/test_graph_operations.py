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


def hostile_acts():
    """Yields what a stranger may try, each with the operations that must be refused."""
    raw = tf.raw_ops
    number = tf.constant(0, tf.int64)
    total = lambda data: data.reduce(number, lambda a, b: a)  # noqa: E731
    last = lambda data: data.reduce("", lambda a, b: b)  # noqa: E731
    inner = tf.function(tf.io.read_file)
    yield "ReadFile", lambda: tf.function(lambda path: inner(path))("y")
    yield (
        "WriteFile",
        lambda: tf.while_loop(
            lambda i: i < 1,
            lambda i: (tf.io.write_file(raw.ShardedFilename(basename="x", shard=0, num_shards=1), "y"), i + 1)[1],
            [0],
        ),
    )
    yield "MatchingFiles", lambda: last(tf.data.Dataset.list_files("/*", shuffle=False))
    yield "TextLineDataset", lambda: last(tf.data.Dataset.from_tensors("/x").interleave(tf.data.TextLineDataset))
    yield "FixedLengthRecordDatasetV2", lambda: last(tf.data.FixedLengthRecordDataset("/x", 4))
    yield "TFRecordDataset", lambda: last(tf.data.TFRecordDataset("/x"))
    yield "CSVDatasetV2", lambda: tf.data.experimental.CsvDataset("/x", [tf.string]).reduce("", lambda a, b: a)
    yield "SaveDataset", lambda: tf.data.Dataset.range(3).save("/x")
    yield "SnapshotDatasetV2", lambda: total(tf.data.Dataset.range(3).snapshot("/x"))
    yield "CacheDatasetV2", lambda: total(tf.data.Dataset.range(3).cache("/x"))
    yield "LoadDataset", lambda: total(tf.data.Dataset.load("/x", element_spec=tf.TensorSpec((), tf.int64)))
    yield (
        "DecodeProtoV2",
        lambda: raw.DecodeProtoV2(
            bytes=[b""], message_type="A", field_names=["a"], output_types=[tf.int32], descriptor_source="/x"
        ),
    )
    yield (
        "InitializeTableFromTextFileV2",
        lambda: raw.InitializeTableFromTextFileV2(
            table_handle=raw.HashTableV2(key_dtype=tf.string, value_dtype=tf.int64),
            filename="/x",
            key_index=-2,
            value_index=-1,
        ),
    )
    queue = lambda: raw.FIFOQueueV2(component_types=[tf.string])  # noqa: E731
    yield "WholeFileReaderV2", lambda: raw.ReaderReadV2(reader_handle=raw.WholeFileReaderV2(), queue_handle=queue())
    yield "SaveV2", lambda: raw.SaveV2(prefix="/x", tensor_names=["a"], shape_and_slices=[""], tensors=[tf.ones(1)])
    yield "LMDBDataset", lambda: raw.LMDBDataset(filenames=["/x"], output_types=[tf.string] * 2, output_shapes=[[], []])
    yield "DebugIdentityV2", lambda: raw.DebugIdentityV2(input=[1.0], debug_urls=["grpc://127.0.0.1:1"])
    yield "CopyHost", lambda: raw.CopyHost(input=[1.0], debug_ops_spec=["DebugIdentity;file:///x;0"])
    yield (
        "SummaryWriter WriteScalarSummary",
        lambda: raw.WriteScalarSummary(writer=raw.SummaryWriter(shared_name="w"), step=number, tag="a", value=1.0),
    )
    yield "PyFunc", lambda: tf.numpy_function(max, [1, 2], tf.int64)
    yield "NcclAllReduce", lambda: raw.NcclAllReduce(input=[1.0], reduction="sum", num_devices=1, shared_name="a")
    yield "TPUReplicatedInput", lambda: raw.TPUReplicatedInput(inputs=[1.0])
    yield "DatasetFromGraph", lambda: raw.DatasetFromGraph(graph_def="x")
    yield "FileSystemSetConfiguration", lambda: raw.FileSystemSetConfiguration(scheme="s3", key="a", value="b")


@pytest.mark.filterwarnings("ignore")  # TensorFlow warns of some of the operations
def test_a_graph_that_tries_everything_is_refused_for_each_operation(tmp_path):
    acts = dict(hostile_acts())
    tf.saved_model.save(Net(lambda: [act() for act in acts.values()]), tmp_path / "net")
    assert set(outside(tmp_path / "net")) == {name for names in acts for name in names.split()}


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
