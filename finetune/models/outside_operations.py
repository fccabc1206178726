"""The operations of TensorFlow that reach outside of a graph: to files, other machines, Python or the process.

All other registered operations without a state compute outputs from inputs. Of those with a state the known families
are allowed, such as variables and random numbers, and any other is refused: a later TensorFlow may bring such that
reach anywhere. `tests/models/test_outside_operations.py` goes through every operation of the installed TensorFlow.
"""

import re
from typing import Any

from finetune.keras_private import is_registered_operation, is_stateful_operation

# What an operation reaches, by words that operations of this kind have in their names.
_FAMILIES = (
    ("other machines", ("TPU", "Collective", "DataService", "RegisterDataset", "Rpc", "Grpc", "Bigtable", "BigQuery")),
    ("other machines", ("RemoteCall", "RemoteFused", "WorkerHeartbeat", "DistributedSave", "HostSend", "HostRecv")),
    ("other machines", ("Nccl", "Infeed", "Outfeed", "CrossReplicaSum", "AllToAll", "XlaSparseCore", "XlaHostCompute")),
    ("other machines", ("XlaSend", "XlaRecv", "Minibatch", "ConvertToCooTensor", "GlobalIterId")),
    ("Python", ("PyFunc",)),
    ("files", ("TFRecord", "TextLine", "FixedLengthRecord", "WholeFile", "LMDB", "SqlDataset", "CSVDataset")),
    ("files", ("Snapshot", "SaveDataset", "LoadDataset", "MatchingFiles", "SummaryFileWriter", "SummaryDbWriter")),
    ("files", ("SummaryWriter", "ImportEvent", "WriteSummary", "WriteScalarSummary", "WriteHistogramSummary")),
    ("files", ("WriteImageSummary", "WriteAudioSummary", "WriteGraphSummary", "WriteRawProtoSummary")),
    ("files", ("DebugIdentity", "DebugNanCount", "InitializeTableFromTextFile", "CacheDataset")),
)
_KINDS = {
    **dict.fromkeys(
        ("ReadFile", "WriteFile", "RecordInput", "ImmutableConst", "FixedUnigramCandidateSampler"), "files"
    ),
    **dict.fromkeys(("GenerateVocabRemapping", "LoadAndRemapMatrix", "FileSystemSetConfiguration"), "files"),
    **dict.fromkeys(("Save", "SaveV2", "SaveSlices", "Restore", "RestoreV2", "RestoreSlice"), "files"),
    **dict.fromkeys(("MergeV2Checkpoints", "DebugNumericSummary"), "files"),
    **dict.fromkeys(("Send", "Recv", "_Send", "_Recv"), "other machines"),
    # A graph inside a constant, which cannot be looked through.
    **dict.fromkeys(("DatasetFromGraph",), "another graph"),
    "Abort": "the process",
}
# Operations with a state that stays in the process: variables, random numbers, tables, queues, data sets, calls.
_STATES_INSIDE = re.compile(
    r"(Resource|_?Var|Assign|_?ReadVariable|Temporary|DestroyResource|DisableCopyOnRead"
    r"|Multinomial|\w*TruncatedNormal|NonDeterministicInts|Rng|Stateful|SampleDistorted|StatelessRandomGetAlg"
    r"|\w*Random|\w*CandidateSampler|\w*SeedGenerator|\w*Table|\w*Tensors(From|To)?Map|TensorArray|Stack|Barrier"
    r"|\w*Queue|\w*Accumulator|(Ordered)?Map(Stage|Unstage|Peek|Size|Incomplete|Clear)|Stage|Unstage"
    r"|\w*Iterator|\w*Dataset|\w*ThreadPool|\w*MemoryCache|\w*IterationCounter|\w*StatsAggregator|IdentityReader|Reader"
    r"|\w*BoostedTrees|CudnnRNN|\w*PartitionedCall|Assert|Print|CheckNumerics|\w*Mutex|\w*Session"
    r"|Empty|GuaranteeConst|DeepCopy|Timestamp|DeviceIndex|SyncDevice|_ScopedAllocator|_ParallelConcat"
    r"|_?(If|While|Case|Arg|Retval|DeviceArg|DeviceRetval)$)"
)
SAVES = frozenset({"Save", "SaveV2", "SaveSlices", "MergeV2Checkpoints"})
RESTORES = frozenset({"Restore", "RestoreV2", "RestoreSlice"})
# The input that is the name of the file, for operations that may read an asset of the SavedModel itself.
READS = {"ReadFile": 0, "InitializeTableFromTextFile": 1, "InitializeTableFromTextFileV2": 1}


def reaches(node: Any) -> str:
    """Returns what an operation reaches outside of the graph; empty for one that only computes.

    Args:
        node: A `NodeDef`: the operation with its attributes.
    """
    name = node.op
    kind = _KINDS.get(name) or next((kind for kind, words in _FAMILIES if any(word in name for word in words)), "")
    if kind:
        return kind
    # Some operations write to or read from a file only if an attribute says so.
    if name == "PrintV2" and node.attr["output_stream"].s.startswith(b"file:"):
        return "files"
    if name in ("DecodeProtoV2", "EncodeProto") and not _is_local(node.attr["descriptor_source"].s):
        return "files"
    if name in ("Copy", "CopyHost") and node.attr["debug_ops_spec"].list.s:
        return "files"
    if not is_registered_operation(name):
        return "a library that is not TensorFlow's"
    return "a state that is not known" if is_stateful_operation(name) and not _STATES_INSIDE.match(name) else ""


def _is_local(source: bytes) -> bool:
    return source in (b"", b"local://") or source.startswith(b"bytes://")
