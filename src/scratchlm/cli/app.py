"""The tree of commands: which words exist and which file answers to them."""

from typing import Annotated

import typer

PREPARE = "The way of a model"
LOOK = "Look inside"
GROUPS = "Single stages"


def build_app() -> typer.Typer:
    """The command line with all its commands."""
    from scratchlm.cli import (
        bench,
        chat,
        checkpoint,
        corpus,
        data,
        doctor,
        evaluate,
        export,
        generate,
        help,
        import_,
        launch,
        plan,
        posttrain,
        profile,
        report,
        run,
        runs,
        serve,
        study,
        tokenizer,
        visualize,
    )

    app = typer.Typer(
        name="scratchlm",
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for command in (run.demo, run.run, run.train):
        app.command(rich_help_panel=PREPARE)(command)
    for command in (posttrain.sft, posttrain.dpo, posttrain.grpo, posttrain.distill, posttrain.merge):
        app.command(rich_help_panel=PREPARE)(command)
    for command in (generate.generate, chat.chat, serve.serve, evaluate.evaluate, report.report):
        app.command(rich_help_panel=PREPARE)(command)
    for command in (plan.plan, doctor.doctor, profile.profile, launch.launch):
        app.command(rich_help_panel=LOOK)(command)
    app.command(rich_help_panel=LOOK)(visualize.visualize)
    app.command(name="help", rich_help_panel=LOOK)(help.help_part)
    groups = {
        LOOK: {"runs": runs, "study": study, "checkpoint": checkpoint, "bench": bench},
        PREPARE: {"export": export, "import": import_},
        GROUPS: {"corpus": corpus, "tokenizer": tokenizer, "data": data},
    }
    for panel, members in groups.items():
        for name, module in members.items():
            app.add_typer(module.app, name=name, rich_help_panel=panel)
    return app


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
