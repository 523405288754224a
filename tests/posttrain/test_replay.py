"""Text of the base beside the conversations: the same documents as in pretraining, kept by the run."""

import shutil

import numpy as np
import pytest
from small_bases import make_base, sayings, settings, write_lines

from scratchlm.data.prepare import prepare
from scratchlm.data.shards import TokenDataset
from scratchlm.posttrain.config import SftConfig
from scratchlm.posttrain.replay import base_documents
from scratchlm.posttrain.run import run
from scratchlm.tokenizer import load_tokenizer
from scratchlm.train.build import build_corpus
from scratchlm.train.folder import RunFolder, read_config
from scratchlm.train.metrics import JsonLines

ASKED = {"number": 5, "max_tokens": 64, "first_id": 0, "seed": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base that has its training text."""
    folder = RunFolder(make_base(tmp_path_factory.mktemp("replay") / "base"))
    tokenizer = load_tokenizer(folder.tokenizer)
    prepare(build_corpus(read_config(folder)), tokenizer, folder.shards("train"), split="train", workers=1)
    return folder.path


def test_documents_are_those_of_the_text_each_once_and_learned_but_for_what_stands_before(base, tmp_path):
    tmp_path.joinpath("run").mkdir()
    found = base_documents(base, tmp_path / "run", **ASKED)
    text = TokenDataset.open(RunFolder(base).shards("train"))
    whole = [[0, *text.document(place).tolist()][:65] for place in range(text.num_documents)]
    drawn = [whole.index(written.ids.tolist()) for written in found]
    assert len(set(drawn)) == 5
    assert all(not written.mask[0] and written.mask[1:].all() for written in found)
    other = base_documents(base, tmp_path, **ASKED | {"seed": 2})
    assert [written.ids.tolist() for written in other] != [written.ids.tolist() for written in found]


def test_all_are_taken_where_there_are_fewer(base, tmp_path):
    assert len(base_documents(base, tmp_path, **ASKED | {"number": 1000})) == 8


def test_a_run_reads_them_and_goes_on_though_the_base_is_gone(base, tmp_path):
    gone, data = tmp_path / "gone", write_lines(tmp_path / "sayings.jsonl", sayings())
    shutil.copytree(base, gone)
    given = {
        "data": {"name": "alpaca", "paths": [str(data)]},
        "conversations_per_step": 8,
        "valid_share": 0.2,
    }
    config = settings(SftConfig, gone, "base_documents=6", **given)
    summary = run("sft", config, tmp_path / "run")
    plain = run("sft", config.model_copy(update={"base_documents": 0}), tmp_path / "plain")
    items = summary["posttrain"]["train_items"]
    assert items == plain["posttrain"]["train_items"] + 6
    before = base_documents(gone, tmp_path / "run", **ASKED)
    shutil.rmtree(gone)
    after = base_documents(gone, tmp_path / "run", **ASKED)
    assert all(np.array_equal(one.ids, other.ids) for one, other in zip(before, after, strict=True))
    longer = settings(SftConfig, gone, "base_documents=6", "train.steps=6", **given)
    run("sft", longer, tmp_path / "run", resume=True)
    assert [
        row["step"] for row in JsonLines(tmp_path / "run" / "metrics.jsonl").rows() if row["kind"] == "train"
    ][-1] == 6


def test_a_base_without_training_text_and_a_damaged_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"base_documents=5: .*base has no training text"):
        base_documents(tmp_path / "base", tmp_path, **ASKED)
    (tmp_path / "base_documents.json").write_text("[[1, 2", encoding="utf-8")
    with pytest.raises(ValueError, match=r"base_documents.json: cannot be read"):
        base_documents(tmp_path / "base", tmp_path, **ASKED)
