"""Runs come in, something to read comes out: report.py (a page per run) and results.py (a row per run)."""

from scratchlm.study.report import write_report
from scratchlm.study.results import append_result, result_of

__all__ = ["append_result", "result_of", "write_report"]
