"""The operations of TensorFlow that reach outside of a graph: to files, other machines, Python or the process.

All other registered operations compute outputs from inputs. `tests/models/test_outside_operations.py` goes through
every operation of the installed TensorFlow whose arguments speak of files or addresses.
"""

from typing import Any

from finetune.keras_private import is_registered_operation

# What an operation reaches, by words that operations of this kind have in their names.
_FAMILIES = (
    ("other machines", ("TPU", "Collective", "DataService", "RegisterDataset", "Rpc", "Grpc", "Bigtable", "BigQuery")),
    ("other machines", ("RemoteCall", "RemoteFused", "WorkerHeartbeat", "DistributedSave", "HostSend", "HostRecv")),
    ("Python", ("PyFunc",)),
    ("files", ("TFRecord", "TextLine", "FixedLengthRecord", "WholeFile", "LMDB", "SqlDataset", "CSVDataset")),
    ("files", ("Snapshot", "SaveDataset", "LoadDataset", "MatchingFiles", "SummaryFileWriter", "SummaryDbWriter")),
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
    # Two operations write to or read from a file only if an attribute says so.
    if name == "PrintV2" and node.attr["output_stream"].s.startswith(b"file:"):
        return "files"
    if name in ("DecodeProtoV2", "EncodeProto") and not _is_local(node.attr["descriptor_source"].s):
        return "files"
    return "" if is_registered_operation(name) else "a library that is not TensorFlow's"


def _is_local(source: bytes) -> bool:
    return source in (b"", b"local://") or source.startswith(b"bytes://")
