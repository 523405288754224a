"""Notebooks come in; they are executed with their hidden solutions and keep their outputs.

    python notebooks/execute.py                  execute all and keep the outputs: what is committed
    python notebooks/execute.py 2-attention      one of them
    python notebooks/execute.py --solutions DIR  copies with each solution as a cell behind its exercise:
                                                 make test-notebooks executes these

A solution stands in the text of an exercise, inside <details>, as a block of Python: a reader opens it, on
a page as in Jupyter. What a machine adds (times, versions) is not kept.
"""

import argparse
import re
import shutil
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
STYLE = "scratchlm.mplstyle"
SOLUTION = re.compile(r"<details><summary>Solution</summary>\n(.*?)\n</details>", re.DOTALL)
CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECONDS = 300
"""A cell that takes longer hangs: the whole notebook takes less than 40 on a quiet core."""


def solutions(text: str) -> list[str]:
    """The Python of all solutions in a text, in order; "" for a solution in words."""
    return ["\n".join(CODE.findall(found)).strip() for found in SOLUTION.findall(text)]


def with_solutions(notebook: dict[str, Any]) -> dict[str, Any]:
    """A copy of a notebook with a cell for each solution that has code, behind the exercises' text."""
    cells = []
    for cell in notebook["cells"]:
        cells.append(cell)
        if cell["cell_type"] != "markdown":
            continue
        for number, code in enumerate(filter(None, solutions("".join(cell["source"]))), start=1):
            extra = {"id": f"{cell['id']}-solution-{number}", "metadata": {}, "execution_count": None}
            cells.append({"cell_type": "code", "source": code, "outputs": [], **extra})
    return notebook | {"cells": cells}


def joined(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Outputs in which text that a kernel sent in parts is one; where it is cut depends on the moment."""
    found: list[dict[str, Any]] = []
    for output in outputs:
        last = found[-1] if found else {}
        if output["output_type"] == "stream" and last.get("name") == output["name"]:
            last["text"] = "".join(last["text"]) + "".join(output["text"])
        else:
            found.append(output)
    return found


def execute(path: Path) -> None:
    """Execute one notebook and its solutions in its folder; keep the outputs of its own cells."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    filled = nbformat.from_dict(with_solutions(notebook))
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(filled, timeout=SECONDS, record_timing=False, resources=resources).execute()
    own = {cell["id"] for cell in notebook.cells}
    filled.cells = [cell for cell in filled.cells if cell["id"] in own]
    for cell in filled.cells:
        if cell["cell_type"] == "code":
            cell["outputs"] = joined(cell["outputs"])
    filled.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    nbformat.write(filled, path)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description="Execute notebooks, or write copies with their solutions.")
    parser.add_argument("names", nargs="*", help="such as 2-attention; all by default")
    parser.add_argument("--solutions", type=Path, metavar="DIR", help="write copies with solutions into DIR")
    options = parser.parse_args()
    paths = [FOLDER / f"{name}.ipynb" for name in options.names] or sorted(FOLDER.glob("*.ipynb"))
    if options.solutions is None:
        for path in paths:
            print(path.name, flush=True)
            execute(path)
        return
    import nbformat

    shutil.rmtree(options.solutions, ignore_errors=True)
    options.solutions.mkdir(parents=True)
    shutil.copy(FOLDER / STYLE, options.solutions)
    for path in paths:
        filled = with_solutions(nbformat.read(path, as_version=4))
        nbformat.write(nbformat.from_dict(filled), options.solutions / path.name)


if __name__ == "__main__":
    main()
