"""`scratchlm launch`: print the file that starts a run on a cluster."""

import re
import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from scratchlm.cli.run import Settings, read_recipe
from scratchlm.cli.sources import Plugin, load_plugins

FILES = {
    "slurm": "slurm.sh.j2",
    "skypilot": "skypilot.yaml.j2",
    "kubernetes": "kubernetes.yaml.j2",
    "ray": "ray_train.py.j2",
}
"""Engine -> its template in recipes/launch."""
Engine = Literal["slurm", "skypilot", "kubernetes", "ray"]
MOUNTED = Path("/runs")
"""Where runs lie by default, except for SLURM; the files mount it, Ray's cluster must have it."""
PORT = 29500
"""Where the processes meet; torchrun's own choice."""


def launch(
    engine: Annotated[Engine, typer.Argument(help="What starts the processes.")],
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
        Path | None, typer.Option("--folder", "-o", help="Run folder that all machines see.")
    ] = None,
    plugin: Plugin = None,
) -> None:
    """Print the file that starts a run on a cluster: scratchlm launch slurm gpt2-small --nodes 4 > job.sh.

    The run goes on from its last checkpoint whenever the job is started again.
    """
    import sys

    from jinja2 import Environment, PackageLoader, StrictUndefined

    from scratchlm.distributed.process import check_rows
    from scratchlm.train import recipes

    load_plugins(plugin)
    config = read_recipe(recipe, settings)
    check_rows(config.rows_per_step, nodes * gpus)  # here, not after hours in a queue
    if engine == "kubernetes" and recipe not in recipes.names():
        raise ValueError(
            f"{recipe}: is no file in the container; name a shipped recipe and give settings as key=value."
        )
    place = folder or (Path("runs") if engine == "slurm" else MOUNTED) / config.name
    if engine != "slurm" and not place.is_absolute():
        raise ValueError(f"--folder {place}: must begin with /, as its processes start in other folders.")
    words = ["train", recipe, *(settings or []), "--folder", str(place), "--restartable"]
    words += [word for path in plugin or [] for word in ("--plugin", str(path))]
    name = re.sub(r"[^a-z0-9-]+", "-", config.name.lower()).strip("-") or "run"
    name = name if name[0].isalpha() else f"run-{name}"
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
