"""Instructions, preferences and GSM8K on a small base: trains what is missing and writes results.json.

    SCRATCHLM_SHARED_DATA=DATA python experiments/2026-11-real-instructions/train_all.py FOLDER BASE [DATA]

Runs go to FOLDER and are not trained twice. BASE is the run to begin with, DATA holds the files that FILES
names.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from torch.nn import Module

from scratchlm.evaluate.answers import marked_number, same_number
from scratchlm.generate.engine import Engine, evaluating
from scratchlm.generate.request import Choice, Request
from scratchlm.generate.sampling import SamplingConfig
from scratchlm.posttrain import INSTRUCTIONS, PREFERENCES
from scratchlm.posttrain import run as posttrain
from scratchlm.posttrain.base import open_base
from scratchlm.posttrain.datasets import Messages, both_splits
from scratchlm.tokenizer import Tokenizer
from scratchlm.tokenizer.chat import ChatTemplate
from scratchlm.train.folder import RunFolder, load_run

HERE = Path(__file__).parent
FILES = {
    "instructions": ("sft/rasbt_instruction_1000.json",),
    "preferences": ("dpo/rasbt_preference_1000.json",),
    "gsm8k": ("math/gsm8k_train.jsonl",),
    "gsm8k test": ("math/gsm8k_test_first1000.jsonl",),
}
STAGES = {"instructions": "sft", "preferences": "dpo", "gsm8k": "sft"}
"""Recipe -> its command; preferences go on from instructions, the others from the base."""
ASKED = 60
"""Questions that are answered before and after."""
MOST_TOKENS = 128


def paths(data: Path, name: str) -> list[str]:
    """The files of one kind."""
    return [str(data / file) for file in FILES[name]]


def summary_of(folder: Path, base: Path, name: str, data: Path) -> dict[str, Any]:
    """What a run's summary.json says; the run is made where there is none."""
    path = folder / name
    if not (path / "summary.json").is_file():
        shutil.rmtree(path, ignore_errors=True)
        begins = folder / "instructions" if name == "preferences" else base
        settings = [f"base={begins}", f"data.paths={paths(data, name)}", "data.on_bad=skip"]
        posttrain.run(STAGES[name], posttrain.read(STAGES[name], name, settings), path)
    return json.loads((path / "summary.json").read_text(encoding="utf-8"))


def answers(model: Module, tokenizer: Tokenizer, asked: list[Messages]) -> list[Choice]:
    """The likeliest answer to each question."""
    template = ChatTemplate(tokenizer)
    stops = tuple(template.stop_ids)
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=MOST_TOKENS)
    requests = [
        Request(prompt_ids=template.render(messages), sampling=sampling, stop_ids=stops) for messages in asked
    ]
    with evaluating(model):
        return [result.choices[0] for result in Engine(model, tokenizer, slots=32).run(requests)]


def before_and_after(path: Path, stage: str, asked: list[Messages]) -> dict[str, list[Choice]]:
    """Answers of the weights that a run began with, and of those that it ended with."""
    config = posttrain.read(stage, str(path))
    base, after = open_base(config, RunFolder(path)), load_run(path, device="cpu")
    return {
        "before": answers(base.model(), base.tokenizer, asked),
        "after": answers(after.model, after.tokenizer, asked),
    }


def share(found: list[bool]) -> float:
    """How many are true."""
    return round(sum(found) / len(found), 4)


def ended(choices: list[Choice]) -> list[bool]:
    """Which answers came to an end by themselves."""
    return [choice.finish_reason == "stop" for choice in choices]


def measure_instructions(folder: Path, name: str) -> dict[str, Any]:
    """Whether held-out instructions are answered with an end, and how long the answers are."""
    stage = STAGES[name]
    config = posttrain.read(stage, str(folder / name))
    family = INSTRUCTIONS if stage == "sft" else PREFERENCES
    source = family.build(config.data.name, **config.data.settings)
    held_out = both_splits(source, share=config.valid_share, seed=config.seed)["valid"]
    asked = [item.messages[:-1] if stage == "sft" else item.prompt for item in held_out][:ASKED]
    result: dict[str, Any] = {"questions": len(asked)}
    for when, choices in before_and_after(folder / name, stage, asked).items():
        lengths = [len(choice.tokens) for choice in choices]
        result[when] = {
            "ended": share(ended(choices)),
            "tokens": round(sum(lengths) / len(lengths), 1),
            "samples": [
                {"asked": messages[-1]["content"], "said": choice.text}
                for messages, choice in list(zip(asked, choices, strict=True))[:5]
            ],
        }
    return result


def measure_gsm8k(folder: Path, data: Path) -> dict[str, Any]:
    """Form and correctness of answers to test problems."""
    lines = Path(paths(data, "gsm8k test")[0]).read_text(encoding="utf-8").splitlines()[:ASKED]
    rows = [json.loads(line) for line in lines]
    asked: list[Messages] = [({"role": "user", "content": row["question"]},) for row in rows]
    expected = [marked_number(row["answer"]) for row in rows]
    result: dict[str, Any] = {"questions": len(asked)}
    for when, choices in before_and_after(folder / "gsm8k", "sft", asked).items():
        stated = [marked_number(choice.text) for choice in choices]
        formed = [number is not None for number in stated]
        result[when] = {
            "ended": share(ended(choices)),
            "marked number": share(formed),
            "marked number and ended": share(
                [form and end for form, end in zip(formed, ended(choices), strict=True)]
            ),
            "correct": share([same_number(*pair) for pair in zip(stated, expected, strict=True)]),
            "samples": [
                {"asked": row["question"], "said": choice.text}
                for row, choice in list(zip(rows, choices, strict=True))[:5]
            ],
        }
    return result


def main() -> None:
    folder, base = Path(sys.argv[1]), Path(sys.argv[2])
    data = Path(sys.argv[3] if len(sys.argv) > 3 else os.environ["SCRATCHLM_SHARED_DATA"])
    about = json.loads((base / "summary.json").read_text(encoding="utf-8"))
    results: dict[str, Any] = {
        "base": {key: about[key] for key in ("parameters", "steps", "tokens", "valid_loss", "bits_per_byte")}
    }
    for name in STAGES:
        summary = summary_of(folder, base, name, data)
        results[name] = {"steps": summary["steps"]} | {
            key: summary["posttrain"][key] for key in ("train_items", "valid_items", "before", "after")
        }
    for name in ("instructions", "preferences"):
        results[name]["answers"] = measure_instructions(folder, name)
    results["gsm8k"]["answers"] = measure_gsm8k(folder, data)
    text = json.dumps(results, indent=2, ensure_ascii=False)
    (HERE / "results.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
