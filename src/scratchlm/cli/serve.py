"""`scratchlm serve`: a trained model behind OpenAI's interface, with a page to talk on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scratchlm.cli.sources import CheckpointOption, Plugin, load_plugins

if TYPE_CHECKING:
    from scratchlm.serve.worker import Worker

EXTRA = {"starlette", "uvicorn", "h11", "prometheus_client"}
"""Packages of the extra `serve`, and what they bring."""


def serve(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders; the page shows two side by side.")
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; by default this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="SCRATCHLM_API_KEY",
            show_envvar=True,
            help="Every request must bring it; a browser asks for it, as the password.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Further name by which clients call this machine; may be repeated."),
    ] = None,
    slots: Annotated[int, typer.Option(min=1, help="Texts that each model writes at once.")] = 8,
    max_waiting: Annotated[int, typer.Option(min=0, help="Texts that wait; more are refused (429).")] = 128,
    max_tokens: Annotated[int, typer.Option(min=1, help="The most new tokens of one text.")] = 4096,
    begin_prompts: Annotated[
        bool,
        typer.Option("--begin-prompts", help="Token ids, too, follow the end-of-text token: for lm-eval."),
    ] = False,
    checkpoint: CheckpointOption = "newest",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    plugin: Plugin = None,
) -> None:
    """Answer programs that speak OpenAI's interface, and people on a page, until Ctrl-C."""
    from scratchlm.cli.console import err
    from scratchlm.config import validate
    from scratchlm.train.folder import RunFolder, read_config

    load_plugins(plugin)
    for run in runs:
        read_config(RunFolder(run))
    try:
        from scratchlm.serve.limits import ServeConfig
        from scratchlm.serve.server import serve as serve_runs
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        raise ValueError("serving needs the extra 'serve': pip install 'scratchlm[serve]'.") from None
    settings = {"host": host, "port": port, "api_key": api_key, "allowed_hosts": tuple(allow_host or ())}
    settings |= {"slots": slots, "max_waiting": max_waiting, "max_tokens": max_tokens}
    settings["begin_prompts"] = begin_prompts
    config = validate(ServeConfig, settings)
    if api_key is None and not _is_loopback(host):
        err().print(
            f"warning: everybody who can reach {host} may use this server; give an --api-key.", style="yellow"
        )

    def say_bound(url: str) -> None:
        err().print(f"loading {', '.join(run.name or str(run) for run in runs)} for {url} ...", style="dim")

    serve_runs(runs, config, device=device, checkpoint=checkpoint, on_bound=say_bound, on_ready=_say_ready)


def _say_ready(url: str, worker: "Worker") -> None:
    from scratchlm.cli.console import out

    console = out()
    for model in worker.models.values():
        sizes = f"context {model.context_length}, vocabulary {model.vocab_size}"
        console.print(f"{model.name}: step {model.step}, {sizes}, {worker.config.slots} slots")
    console.print(f"page   {url}", style="bold")
    console.print(f"API    {url}/v1", style="bold")
    console.print("Ctrl-C stops it.", style="dim")


def _is_loopback(host: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
