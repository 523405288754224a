"""The record of a run."""

from scratchlm.train.metrics import JsonLines


def test_rows_come_back_in_order(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    rows = [{"step": step, "text": f"caf\u00e9 {step}"} for step in range(5)]
    for row in rows:
        lines.append(row)
    assert lines.rows() == rows


def test_a_torn_last_line_is_left_out_and_removed_on_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    for step in range(1, 6):
        lines.append({"step": step})
    with path.open("a", encoding="utf-8") as stream:
        stream.write('{"step": 6, "lo')
    assert [row["step"] for row in lines.rows()] == [1, 2, 3, 4, 5]
    lines.cut_after(3)
    lines.append({"step": 4})
    assert path.read_text(encoding="utf-8") == '{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4}\n'


def test_a_text_may_hold_any_line_separator(tmp_path):
    lines = JsonLines(tmp_path / "samples.jsonl")
    rows = [{"step": 1, "text": "a\u2028b\u0085c\x1cd\r\ne"}, {"step": 2, "text": "f"}]
    for row in rows:
        lines.append(row)
    lines.cut_after(2)
    assert lines.rows() == rows


def test_no_file_means_no_rows(tmp_path):
    assert JsonLines(tmp_path / "none.jsonl").rows() == []
