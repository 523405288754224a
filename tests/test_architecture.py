"""What no linter checks: sizes, docstrings, one home a name, a light start-up, nothing borrowed."""

import ast
import io
import os
import re
import subprocess
import sys
import tokenize
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "scratchlm"
FILES = sorted(SRC.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}

MAX_LINES = 400
MAX_FUNCTION_LINES = 50

HEAVY = {"torch", "numpy", "numba", "pyarrow", "matplotlib", "jinja2", "safetensors", "regex", "scipy"}
"""Nothing of this may be imported to show help."""

TABLES = {"data/stories_words.py: variables"}
"""Long functions that are a table, not a procedure."""
FACADES = {"scratchlm.data.stories"}
"""Files that hand on what their neighbours define: the embedded corpus is one thing in several files."""

ALLOWED_NN = {"Module", "Parameter", "ModuleList", "ModuleDict", "Buffer"}
ALLOWED_OPTIM = {"Optimizer", "optimizer"}
FORBIDDEN_CALLS = {
    "torch.load",
    "torch.save",
    "torch.softmax",
    "torch.layer_norm",
    "torch.rms_norm",
    "torch.embedding",
}
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "transformers", "tokenizers", "tiktoken"}
BORROWED = {
    # the one place that reads files of others: weights_only=True, and the name of the error it raises
    "checkpoint/foreign.py": {"torch.load", "pickle.UnpicklingError"},
    # attention=sdpa, never the default
    "kernels/attention_sdpa.py": {"torch.nn.functional.scaled_dot_product_attention"},
    # the backends of attention=sdpa, each pinned and measured under its own name
    "bench/attention.py": {"torch.nn.attention.SDPBackend", "torch.nn.attention.sdpa_kernel"},
    # attention=flex, never the default
    "kernels/attention_flex.py": {
        f"torch.nn.attention.flex_attention.{name}"
        for name in ("flex_attention", "create_block_mask", "BlockMask")
    },
    # the engines for real clusters; distributed/ddp.py is what we write ourselves
    "distributed/engine_ddp.py": {"torch.nn.parallel.DistributedDataParallel"},
    # tells when a block is made, so that it can be dealt out at once
    "distributed/engine_fsdp.py": {"torch.nn.modules.module.register_module_module_registration_hook"},
    # equals the softmax written out in the same file; one pass over the scores instead of six
    "kernels/attention_reference.py": {"torch.softmax"},
}
"""File -> the parts of torch that it may use although we write such things ourselves, and why."""


def place(path):
    return path.relative_to(SRC).as_posix()


def dotted(node):
    """`torch.nn.Linear` for the expression torch.nn.Linear; "" for anything else."""
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return node.id if isinstance(node, ast.Name) else ""


def names_used(tree):
    """Every dotted name that a module uses, with the names of its imports put in full."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
                aliases[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            head, _, rest = dotted(node).partition(".")
            if head in aliases:
                yield f"{aliases[head]}.{rest}", node.lineno


def lines_of_code(function):
    """The lines of a function's body without its docstring."""
    first = function.body[0]
    says = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return function.end_lineno - (first.end_lineno if says else first.lineno - 1)


def public_definitions(tree):
    kinds = (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)
    return [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


@pytest.mark.parametrize("path", FILES, ids=place)
def test_a_file_is_short(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_LINES, f"{place(path)} has {lines} lines; split it by idea (at most {MAX_LINES})"


@pytest.mark.parametrize("path", FILES, ids=place)
def test_functions_are_short(path):
    long = [
        f"{node.name}: {lines_of_code(node)} lines"
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and lines_of_code(node) > MAX_FUNCTION_LINES
        and f"{place(path)}: {node.name}" not in TABLES
    ]
    assert not long, f"{place(path)}: {long}"


@pytest.mark.parametrize("path", FILES, ids=place)
def test_everything_public_has_a_docstring(path):
    tree = TREES[path]
    missing = [] if ast.get_docstring(tree) else ["the module"]
    for node in public_definitions(tree):
        if not ast.get_docstring(node):
            missing.append(node.name)
        if isinstance(node, ast.ClassDef):
            missing += [
                f"{node.name}.{item.name}"
                for item in node.body
                if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)
                and not item.name.startswith("_")
                and not ast.get_docstring(item)
                and not any(
                    dotted(decorator).endswith((".setter", "overload")) for decorator in item.decorator_list
                )
            ]
    assert not missing, f"{place(path)}: no docstring: {missing}"


def test_an_exported_name_has_one_home():
    homes = defaultdict(set)
    for path, tree in TREES.items():
        if path.name != "__init__.py":
            continue
        imported = {
            alias.asname or alias.name: node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        exported = next(
            (ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)
             and dotted(node.targets[0]) == "__all__"), [],
        )  # fmt: skip
        for name in exported:
            homes[name].add(imported.get(name, place(path)))
    assert not {name: sorted(places) for name, places in homes.items() if len(places) > 1}


def test_a_name_is_imported_from_the_file_that_defines_it_or_its_package():
    defined = defaultdict(set)
    for path, tree in TREES.items():
        module = "scratchlm." + place(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                defined[module].add(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                defined[module] |= {
                    part.id for t in targets for part in ast.walk(t) if isinstance(part, ast.Name)
                }
    wrong = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("scratchlm."):
                continue
            source = SRC.joinpath(*node.module.split(".")[1:])
            if source.is_dir() or node.module in FACADES:
                continue  # a package may hand on what its files define
            wrong += [
                f"{place(path)}:{node.lineno} takes {alias.name} from {node.module}"
                for alias in node.names
                if alias.name not in defined[node.module]
            ]
    assert not wrong


@pytest.mark.parametrize("path", FILES, ids=place)
def test_nothing_is_borrowed_where_we_write_it_ourselves(path):
    wrong = []
    for name, line in names_used(TREES[path]):
        if name in BORROWED.get(place(path), ()) or any(
            allowed.startswith(f"{name}.") for allowed in BORROWED.get(place(path), ())
        ):
            continue
        parts = name.split(".")
        bad = (
            name in FORBIDDEN_CALLS
            or parts[0] in FORBIDDEN_MODULES
            or name.endswith("scaled_dot_product_attention")
            or (parts[:2] == ["torch", "nn"] and len(parts) > 2 and parts[2] not in ALLOWED_NN)
            or (parts[:2] == ["torch", "optim"] and len(parts) > 2 and parts[2] not in ALLOWED_OPTIM)
        )
        if bad:
            wrong.append(f"{place(path)}:{line} {name}")
    assert not wrong


@pytest.mark.parametrize("path", FILES, ids=place)
def test_habits_that_hide_mistakes_are_not_used(path):
    wrong = []
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ExceptHandler) and place(path) != "cli/__init__.py":
            caught = {dotted(part) for part in ast.walk(node.type)} if node.type else {"Exception"}
            if caught & {"Exception", "BaseException"}:
                wrong.append(f"{node.lineno}: except Exception")
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            wrong.append(f"{node.lineno}: from __future__ import")
        if isinstance(node, ast.Call):
            name = dotted(node.func) or getattr(node.func, "attr", "")
            keywords = {keyword.arg for keyword in node.keywords}
            if name == "print" and not place(path).startswith("cli/"):
                wrong.append(f"{node.lineno}: print")
            if name.rpartition(".")[2] in ("read_text", "write_text") and not keywords & {"encoding", None}:
                known_helper = name.endswith(("write_text", "read_text")) and "." not in name
                if not known_helper:
                    wrong.append(f"{node.lineno}: {name} without encoding")
    assert not wrong, f"{place(path)}: {wrong}"


@pytest.mark.parametrize("path", FILES, ids=place)
def test_comments_are_ascii_and_promise_nothing(path):
    wrong = []
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT and (
            not token.string.isascii() or re.search(r"\b(TODO|FIXME|XXX|HACK)\b", token.string)
        ):
            wrong.append(f"{place(path)}:{token.start[0]} {token.string}")
    assert not wrong


def modules_after(words):
    code = (
        f"import sys; from scratchlm.cli import main; main({words!r}); print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_help_imports_nothing_heavy(words):
    assert sorted(modules_after(words) & (HEAVY | {"pydantic"})) == []


@pytest.mark.parametrize("words", [["train", "--help"], ["corpus", "write", "--help"]])
def test_help_of_a_command_imports_nothing_heavy(words):
    assert sorted(modules_after(words) & HEAVY) == []


def test_help_costs_little_more_than_the_library_that_prints_it(tmp_path):
    """Processor time, the best of six each, from compiled files as installed: 1.7 times on quiet cores."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    printing = ["-c", "import typer, typer.rich_utils, rich.markdown, rich.panel"]

    def seconds(words):
        before = os.times()
        subprocess.run([sys.executable, *words], capture_output=True, check=True, env=environment)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    pairs = [(seconds(["-m", "scratchlm", "--help"]), seconds(printing)) for _ in range(6)]
    assert min(ours for ours, _ in pairs) < 2.5 * min(theirs for _, theirs in pairs)


def test_what_only_reads_a_model_imports_no_compiler():
    code = (
        "import sys, scratchlm.evaluate, scratchlm.generate, scratchlm.interop, scratchlm.serve; "
        "from scratchlm.train import folder, run; from scratchlm.distributed.engine import ENGINES; "
        "ENGINES.names(); print(*{'torch._dynamo', 'torch.distributed.fsdp', 'sympy'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_importing_the_package_draws_no_random_numbers_and_touches_no_device():
    code = (
        "import random, sys; state = random.getstate(); import scratchlm, scratchlm.runtime; "
        "assert random.getstate() == state; assert 'torch' not in sys.modules, 'torch'"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_every_folder_says_what_it_is():
    for folder in sorted({path.parent for path in FILES}):
        if folder.name in ("templates", "recipes"):
            continue
        tree = TREES.get(folder / "__init__.py")
        assert tree is not None, f"{folder.name}/ has no __init__.py"
        assert ast.get_docstring(tree), f"{folder.name}/__init__.py says nothing"


def test_the_map_of_the_package_names_every_folder():
    text = ast.get_docstring(TREES[SRC / "__init__.py"])
    folders = {path.parent.relative_to(SRC).parts[0] for path in FILES if path.parent != SRC}
    assert not [name for name in sorted(folders) if f"{name}/" not in text]
