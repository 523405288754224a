"""`scratchlm checkpoint`: list the checkpoints of a run, check every byte, take in foreign weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import Tensor

app = typer.Typer(no_args_is_help=True, help="Look at checkpoints, check them, take in foreign weights.")

Place = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder, its checkpoints folder, or one checkpoint.")
]


@app.command(name="list")
def list_checkpoints(run: Place) -> None:
    """List the checkpoints of a run; sizes are compared, contents are not read."""
    from datetime import datetime

    from scratchlm.checkpoint import CheckpointError
    from scratchlm.checkpoint.manifest import read_manifest
    from scratchlm.checkpoint.tensor_file import check_size
    from scratchlm.cli.console import err, print_table, size, table

    rows = table("step", "written", "size", "format", "processes", "state", numbers=("step", "size"))
    paths = _checkpoints(run)
    for path in paths:
        written = datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M:%S")
        name, state = path.name.removeprefix("step-").lstrip("0") or "0", "complete"
        try:
            manifest = read_manifest(path)
            for file, entry in manifest.files.items():
                check_size(path / file, entry)
        except CheckpointError as error:
            rows.add_row(name, written, "-", "-", "-", str(error))
            continue
        num_bytes = sum(entry.num_bytes for entry in manifest.files.values())
        processes = str(manifest.identity.get("world_size", "-"))
        rows.add_row(str(manifest.step), written, size(num_bytes), str(manifest.format), processes, state)
    print_table(rows)
    unfinished = len(list(paths[0].parent.glob(".step-*")))
    if unfinished:
        err().print(f"unfinished saves: {unfinished}; they go when training goes on.", style="dim")


@app.command()
def verify(run: Place) -> None:
    """Compare every byte with the checksums; names each damaged file and says where a run would go on."""
    from scratchlm.checkpoint import CheckpointError
    from scratchlm.checkpoint import verify as verify_checkpoint
    from scratchlm.cli.console import print_table, size, table

    rows = table("checkpoint", "files", "size", "state", numbers=("files", "size"))
    paths = _checkpoints(run)
    good = []
    for path in paths:
        try:
            files = verify_checkpoint(path).files
        except CheckpointError as error:
            rows.add_row(path.name, "-", "-", str(error))
            continue
        good.append(path)
        num_bytes = sum(entry.num_bytes for entry in files.values())
        rows.add_row(path.name, str(len(files)), size(num_bytes), "every byte is right")
    print_table(rows)
    if len(good) < len(paths):
        goes_on = f"a run goes on from {good[-1].name}" if good else "no run can go on from here"
        raise ValueError(f"{run}: {len(paths) - len(good)} of {len(paths)} cannot be used; {goes_on}.")


@app.command(name="import")
def import_weights(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.pt", help="A state dict with this library's (CS336's) names.")
    ],
    folder: Annotated[
        Path,
        typer.Option("--folder", "-o", help="A run folder with config.json, or a folder for checkpoints."),
    ],
    step: Annotated[
        int | None, typer.Option(min=0, help="Number of finished steps; by default what the file says.")
    ] = None,
) -> None:
    """Take a model's weights out of a .pt file without running anything in it, into a checkpoint."""
    import contextlib

    from scratchlm.checkpoint import latest, save_checkpoint
    from scratchlm.checkpoint.foreign import read_foreign
    from scratchlm.checkpoint.manifest import step_of
    from scratchlm.cli.console import count, out
    from scratchlm.lock import run_lock

    found = read_foreign(file)
    number = found.step if step is None else step
    is_run = (folder / "config.json").is_file()
    place = folder / "checkpoints" if is_run else folder
    tensors, state = {"model": found.tensors}, {"imported_from": file.name}
    with run_lock(folder) if is_run else contextlib.nullcontext():
        if is_run:
            _check_model(folder, found.tensors, file)
            tensors, state = _as_start(folder, tensors, state)
        newest = latest(place)
        if newest is not None and number <= (step_of(newest) or 0):
            after = (step_of(newest) or 0) + 1
            raise ValueError(f"{place}: holds {newest.name} already; give --step {after} or another folder.")
        path = save_checkpoint(place, number, tensors, state)
    parameters = sum(tensor.numel() for tensor in found.tensors.values())
    out().print(f"{path}: {count(parameters)} parameters in {len(found.tensors)} tensors")


def _checkpoints(place: Path) -> list[Path]:
    """The checkpoint folders that `place` means.

    Raises:
        ValueError: There are none.
    """
    from scratchlm.checkpoint.retention import checkpoint_folders

    if (place / "manifest.json").is_file():
        return [place]
    found = checkpoint_folders(place / "checkpoints") or checkpoint_folders(place)
    if not found:
        raise ValueError(
            f"{place}: holds no checkpoint; give a run folder, its checkpoints folder, or one checkpoint."
        )
    return found


def _check_model(folder: Path, tensors: "dict[str, Tensor]", file: Path) -> None:
    """Compare the weights with the model that a run's settings and tokenizer make."""
    import torch

    from scratchlm.checkpoint.foreign import check_fits
    from scratchlm.tokenizer import load_tokenizer
    from scratchlm.train.build import build_model
    from scratchlm.train.folder import RunFolder, read_config

    run = RunFolder(folder)
    with torch.device("meta"):
        model = build_model(read_config(run), load_tokenizer(run.tokenizer))
    check_fits(tensors, model.state_dict(), file)


def _as_start(
    folder: Path, tensors: "dict[str, dict[str, Tensor]]", state: dict[str, Any]
) -> "tuple[dict[str, dict[str, Tensor]], dict[str, Any]]":
    """Add what `train --resume` needs to go on from foreign weights: a fresh optimizer, the seed."""
    from scratchlm.runtime import random_state, set_seed
    from scratchlm.train.folder import RunFolder, read_config

    set_seed(read_config(RunFolder(folder)).seed)
    generators, numbers = random_state()
    start = {"optimizer": {}, "random": numbers, "best_loss": None, "best_step": 0, "training_seconds": 0.0}
    return {**tensors, "optimizer": {}, "random": generators}, {**state, **start}
