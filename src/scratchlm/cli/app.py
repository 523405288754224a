"""The tree of commands: which words exist and which file answers to them."""

from collections.abc import Callable
from typing import Annotated

import typer

MAKE = "Make a model"
TEACH = "Teach it"
USE = "Use it"
LOOK = "Look inside"
GROUPS = "Single stages"


def build_app() -> typer.Typer:
    """The command line with all its commands."""
    app = typer.Typer(
        name="scratchlm",
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for panel, members in _commands().items():
        for command in members:
            name = command.__name__.removesuffix("_part")
            app.command(name=name, rich_help_panel=panel)(command)
    for panel, groups in _groups().items():
        for name, group in groups.items():
            app.add_typer(group, name=name, rich_help_panel=panel)
    return app


def _commands() -> dict[str, list[Callable[..., None]]]:
    """Single words, in the order of the help."""
    from scratchlm.cli import (
        chat,
        doctor,
        evaluate,
        generate,
        help,
        launch,
        plan,
        posttrain,
        profile,
        report,
        run,
        serve,
        visualize,
    )

    return {
        MAKE: [run.demo, run.run, run.train],
        TEACH: [posttrain.sft, posttrain.dpo, posttrain.grpo, posttrain.distill, posttrain.merge],
        USE: [generate.generate, chat.chat, serve.serve, evaluate.evaluate, report.report],
        LOOK: [
            plan.plan,
            doctor.doctor,
            profile.profile,
            launch.launch,
            visualize.visualize,
            help.help_part,
        ],
    }


def _groups() -> dict[str, dict[str, typer.Typer]]:
    """Words that others follow."""
    from scratchlm.cli import bench, checkpoint, corpus, data, export, import_, runs, study, tokenizer

    return {
        USE: {"export": export.app, "import": import_.app},
        LOOK: {"runs": runs.app, "study": study.app, "checkpoint": checkpoint.app, "bench": bench.app},
        GROUPS: {"corpus": corpus.app, "tokenizer": tokenizer.app, "data": data.app},
    }


def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", "-V", help="Show the version.")] = False,
) -> None:
    """The whole life of a small language model, from scratch: raw text to a trained, measured, talking model.

    Start with [bold]scratchlm demo[/bold].
    """
    del debug  # taken out of the words by main(), which also finds it behind the command
    if version:
        from scratchlm import __version__

        typer.echo(f"scratchlm {__version__}")
        raise typer.Exit
    from scratchlm.cli.console import show_warnings

    show_warnings()
