"""Text of the base run comes in; documents to learn beside the conversations go out: less is forgotten.

    BASE/data/train   ->   RUN/base_documents.json, ids   ->   Written: all but the first id is learned

A run that reads conversations alone drifts away from what its base could do, wherever its rate is high enough
to learn them soon. Documents of the base's own training text, in the same steps and rows, hold it there. They
are drawn once and kept in the run's folder, so the run goes on though the base is gone.

Source: rehearsal: Robins 1995, https://doi.org/10.1080/09540099550039318; as PPO-ptx: Ouyang et al. 2022,
https://arxiv.org/abs/2203.02155, section 3.5.
"""

import json
from pathlib import Path

import numpy as np

from scratchlm import runtime
from scratchlm.data.permutation import permute
from scratchlm.data.shards import MANIFEST, TokenDataset
from scratchlm.posttrain.packing import Written
from scratchlm.train.folder import RunFolder

FILE = "base_documents.json"
"""Where a run keeps them."""


def base_documents(
    base: Path, folder: Path, *, number: int, max_tokens: int, first_id: int, seed: int
) -> list[Written]:
    """Return documents of the base's training text, drawn without replacement.

    Args:
        base: The base's run folder; not read where the documents lie in `folder` already.
        folder: This run's folder.
        number: How many; all if there are fewer.
        max_tokens: The most inputs of a row; what a document has beyond it is cut.
        first_id: What stands before a document, as in pretraining: the end of the one before.
        seed: Decides which.

    Raises:
        ValueError: The base has no training text, or the file in the folder is damaged.
    """
    file = folder / FILE
    if not file.is_file():
        shards = RunFolder(base).shards("train")
        if not (shards / MANIFEST).is_file():
            raise ValueError(
                f"base_documents={number}: {base} has no training text (data/train is missing); give a "
                "pretrained run as the base, or base_documents=0."
            )
        text = TokenDataset.open(shards)
        places = range(min(number, text.num_documents))
        found = [text.document(permute(place, text.num_documents, seed, 0)).tolist() for place in places]
        runtime.write_text_atomically(file, json.dumps(found) + "\n")
    try:
        documents = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: cannot be read ({error}); start a new folder.") from None
    kept = [np.array([first_id, *ids][: max_tokens + 1], np.int32) for ids in documents]
    return [Written(ids, np.arange(len(ids)) > 0, 0) for ids in kept]
