"""Which operations reach outside of a graph is held against every operation that the installed TensorFlow registers."""

import re

import pytest
import tensorflow as tf
from tensorflow.core.framework import node_def_pb2
from tensorflow.python.framework import op_def_registry

from finetune.models.outside_operations import READS, RESTORES, SAVES, reaches

# Words in the names of arguments that speak of files and addresses, and in names of operations that do.
ARGUMENTS = (
    r"file|path|(^|_)dir(ectory|s)?$|logdir|prefix|address|url|uri|hostname|port|socket|memory_region|descriptor_source"
)
NAMES = r"File|PyFunc|Rpc|Remote|Send|Recv|TPU|Collective|Snapshot|TFRecord|SaveV|RestoreV|LMDB|Sql|CSVDataset"
# Looked at, and harmless without a companion that is on the list: readers are read by an operation on a file, rates and
# prefixes of text are no paths, and names of files are put together as text.
HARMLESS = {
    *("CTCBeamSearchDecoder", "ExperimentalSetStatsAggregatorDataset", "SetStatsAggregatorDataset"),
    *("ShardedFilename", "ShardedFilespec", "TensorSliceDataset"),
}


def node(name, **attributes):
    made = node_def_pb2.NodeDef(op=name)
    for key, value in attributes.items():
        made.attr[key].s = value
    return made


def test_every_operation_whose_arguments_are_files_or_addresses_is_on_the_list():
    missed = []
    for name in filter(lambda name: not name.startswith("_"), dir(tf.raw_ops)):
        definition = op_def_registry.get(name)
        if definition is None:
            continue
        arguments = [each.name for each in (*definition.input_arg, *definition.attr)]
        says = [each for each in arguments if re.search(ARGUMENTS, each)] or re.search(NAMES, name)
        if (
            says
            and not reaches(node(name, output_stream=b"file:///x", descriptor_source=b"/x"))
            and name not in HARMLESS
        ):
            missed.append((name, says))
    assert missed == []
    assert all(op_def_registry.get(name) for name in HARMLESS)


def test_every_operation_with_a_state_belongs_to_a_known_family_or_is_listed():
    names = [name for name in dir(tf.raw_ops) if op_def_registry.get(name) is not None]
    assert len(names) > 1000
    assert [name for name in names if reaches(node(name)) == "a state that is not known"] == []


def test_an_operation_with_a_state_that_nobody_has_looked_at_is_refused(monkeypatch):
    monkeypatch.setattr("finetune.models.outside_operations.is_registered_operation", lambda name: True)
    assert reaches(node("ParquetWriter")) == "a state that is not known"
    assert reaches(node("_XlaRun")) == "a state that is not known"  # runs a compiled program


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("ReadFile", "files"), ("WriteFile", "files"), ("MatchingFiles", "files"), ("SaveV2", "files")),
        *(("TextLineDataset", "files"), ("CreateSummaryFileWriter", "files"), ("ImmutableConst", "files")),
        *(("WriteScalarSummary", "files"), ("FlushSummaryWriter", "files"), ("ImportEvent", "files")),
        *(
            ("NcclAllReduce", "other machines"),
            ("OutfeedEnqueue", "other machines"),
            ("XlaCallModule", "a library that is not TensorFlow's"),
        ),
        *(("ResourceApplyAdam", ""), ("RandomUniform", ""), ("StatefulPartitionedCall", ""), ("CudnnRNNV3", "")),
        *(("EagerPyFunc", "Python"), ("PyFuncStateless", "Python"), ("Abort", "the process")),
        *(("DataServiceDatasetV4", "other machines"), ("TPUPartitionedCall", "other machines")),
        *(("DatasetFromGraph", "another graph"), ("SentencepieceOp", "a library that is not TensorFlow's")),
        *(("MatMul", ""), ("HashTableV2", ""), ("MapDataset", ""), ("VarHandleOp", ""), ("StringJoin", "")),
    ],
)
def test_the_kinds_of_what_is_reached(name, kind):
    assert reaches(node(name)) == kind


def test_some_operations_use_files_only_if_an_attribute_says_so():
    assert reaches(node("PrintV2", output_stream=b"stderr")) == ""
    assert reaches(node("PrintV2", output_stream=b"file:///home/me/.bashrc")) == "files"
    assert reaches(node("DecodeProtoV2", descriptor_source=b"local://")) == ""
    assert reaches(node("EncodeProto", descriptor_source=b"/etc/passwd")) == "files"
    copy = node("CopyHost")
    assert reaches(copy) == ""
    copy.attr["debug_ops_spec"].list.s.append(b"DebugIdentity;file:///home/me/x;0")
    assert reaches(copy) == "files"


def test_the_operations_of_the_saver_and_of_assets_exist():
    assert all(op_def_registry.get(name) for name in SAVES | RESTORES | set(READS))
    for name, position in READS.items():
        assert op_def_registry.get(name).input_arg[position].name == "filename"
