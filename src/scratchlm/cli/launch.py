"""`scratchlm launch`: print the file that starts a run on a cluster."""

import re
import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from scratchlm.cli.run import Settings, read_recipe

FILES = {
    "slurm": "slurm.sh.j2",
    "skypilot": "skypilot.yaml.j2",
    "kubernetes": "kubernetes.yaml.j2",
    "ray": "ray_train.py.j2",
}
"""Engine -> its template in recipes/launch."""
Engine = Literal["slurm", "skypilot", "kubernetes", "ray"]
PORT = 29500
"""Where the processes meet; torchrun's own choice."""


def launch(
    engine: Annotated[
        Literal["slurm", "skypilot", "kubernetes", "ray"], typer.Argument(help="What starts it.")
    ],
    recipe: Annotated[str, typer.Argument(help="A shipped recipe or a .toml or .json file.")],
    settings: Settings = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of a machine; one process each.")] = 8,
    gpu: Annotated[str, typer.Option(help="Kind of GPU, for SkyPilot.")] = "H100",
    cpus: Annotated[int, typer.Option(min=1, help="Cores of a machine.")] = 32,
    hours: Annotated[int, typer.Option(min=1, help="Longest time, for SLURM.")] = 24,
    restarts: Annotated[int, typer.Option(min=0, help="How often lost processes are replaced.")] = 3,
    image: Annotated[
        str, typer.Option(help="Container with scratchlm, for Kubernetes.")
    ] = "scratchlm:latest",
    folder: Annotated[
        Path | None, typer.Option("--folder", "-o", help="Run folder; all machines see it.")
    ] = None,
) -> None:
    """Print the file that starts a run on a cluster: scratchlm launch slurm gpt2-small --nodes 4 > job.sh.

    The run goes on from its last checkpoint whenever the job is started again.
    """
    import sys

    from jinja2 import Environment, PackageLoader, StrictUndefined

    config = read_recipe(recipe, settings)
    place = folder or Path("runs") / config.name
    words = ["train", recipe, *(settings or []), "--folder", str(place), "--restartable"]
    name = re.sub(r"[^a-z0-9-]+", "-", config.name.lower()).strip("-") or "run"
    templates = Environment(
        loader=PackageLoader("scratchlm", "recipes/launch"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    text = templates.get_template(FILES[engine]).render(
        name=name,
        nodes=nodes,
        gpus=gpus,
        gpu=gpu,
        cpus=cpus,
        hours=hours,
        restarts=restarts,
        image=image,
        port=PORT,
        words=shlex.join(words),
        arguments=words,
    )
    sys.stdout.write(text)
