"""The recipes for one's own files: they fit the stages, and say which file is missing."""

import json

import pytest
from small_bases import sayings, write_lines

from scratchlm.posttrain import INSTRUCTIONS, PREFERENCES
from scratchlm.posttrain.run import read

RECIPES = {"instructions": "sft", "gsm8k": "sft", "preferences": "dpo"}


@pytest.mark.parametrize(("recipe", "stage"), RECIPES.items())
def test_a_file_that_is_missing_is_named(recipe, stage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = read(stage, recipe)
    family = INSTRUCTIONS if stage == "sft" else PREFERENCES
    with pytest.raises(ValueError, match=r"data\.paths: \w+\.jsonl?: no such file"):
        family.build(config.data.name, **config.data.settings)


def test_paths_on_the_command_line_take_the_place_of_the_recipes(tmp_path):
    file = write_lines(tmp_path / "mine.jsonl", sayings(4))
    config = read("sft", "instructions", [f"data.paths={json.dumps([str(file)])}"])
    source = INSTRUCTIONS.build(config.data.name, **config.data.settings)
    assert len(list(source.read("train", share=0.0, seed=0))) == 4
