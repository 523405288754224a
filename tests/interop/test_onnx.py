"""ONNX files: onnxruntime computes what we compute, for any batch and length."""

import pytest
import torch
from foreign_models import ids_of, make_run

from scratchlm.interop.onnx_file import export_onnx
from scratchlm.train.folder import load_run


@pytest.mark.slow
def test_onnxruntime_computes_what_we_compute_also_what_no_class_has(tmp_path):
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason="the extra acceptance is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra acceptance is not installed")
    settings = {"feedforward": {"name": "relu2"}, "softcap": 20.0, "window": 9}
    run = load_run(make_run(tmp_path / "run", "qwen3 wide", **settings), device="cpu")
    export_onnx(run, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    for rows, length in ((2, 24), (1, 7), (3, 64)):
        ids = ids_of(run.tokenizer.vocab_size, rows, length)
        (found,) = session.run(["logits"], {"token_ids": ids.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), run.model(ids), atol=1e-5, rtol=1e-5)


def test_nothing_is_overwritten(tmp_path):
    run = load_run(make_run(tmp_path / "run"), device="cpu")
    (tmp_path / "m.onnx").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="is there already"):
        export_onnx(run, tmp_path / "m.onnx")
