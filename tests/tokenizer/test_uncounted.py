"""Machine code on disk is valid for the sources that it was made of, and for no others."""

from pathlib import Path

from scratchlm.tokenizer.compiled import uncounted
from scratchlm.tokenizer.compiled.cuts import valid_utf8
from scratchlm.tokenizer.compiled.scan_gpt2 import scan_gpt2
from scratchlm.tokenizer.compiled.uncounted import hash_of_sources


def test_a_loops_stamp_knows_all_sources_of_its_folder():
    folder = Path(uncounted.__file__).parent
    for loop in (scan_gpt2, valid_utf8):
        assert loop._cache._cache_file._source_stamp[1] == hash_of_sources(folder)


def test_the_hash_changes_with_any_file(tmp_path):
    (tmp_path / "one.py").write_text("a = 1", encoding="utf-8")
    (tmp_path / "two.py").write_text("b = 1", encoding="utf-8")
    first = hash_of_sources(tmp_path)
    hash_of_sources.cache_clear()
    assert hash_of_sources(tmp_path) == first
    (tmp_path / "two.py").write_text("b = 2", encoding="utf-8")
    hash_of_sources.cache_clear()
    assert hash_of_sources(tmp_path) != first
    hash_of_sources.cache_clear()
