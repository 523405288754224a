"""Offline files of Weights & Biases: a run folder comes in, what was logged goes out."""

import json


def leveldb_records(content, block=32768):
    """The records of LevelDB's log format behind a head of 7 bytes: check sum, length, kind, data."""
    place, data = 7, b""
    while place + 7 <= len(content):
        left = block - place % block
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        if left < 7 or (kind, length) == (0, 0):
            place += left  # the rest of a block is empty
            continue
        data += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield data
            data = b""


def wandb_rows(folder, name="train/loss"):
    """The points (step, value) of a curve in all offline files of a run, oldest file first; and the ids."""
    from wandb.proto import wandb_internal_pb2

    rows, ids = [], set()
    for path in sorted(
        folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns
    ):
        for data in leveldb_records(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
            elif record.WhichOneof("record_type") == "history":
                items = {item.key or "/".join(item.nested_key): json.loads(item.value_json)
                         for item in record.history.item}  # fmt: skip
                rows += [(items["_step"], items[name])] if name in items else []
    return rows, ids
