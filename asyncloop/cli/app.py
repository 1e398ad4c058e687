"""The commands and their options. A command's own module is imported when the command runs."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from asyncloop._version import __version__

__all__ = ["app", "run_command"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigFile = Annotated[
    str, typer.Argument(metavar="CFG", help="The config: a TOML file, or a directory with a cfg.toml.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Another value for a key, e.g. model.lr=0.1; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


def run_command() -> int:
    """Run the command of `sys.argv`; its exit code. Never raises."""
    from asyncloop.cli.trouble import tell

    try:
        try:
            app(prog_name="asyncloop")
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
        else:
            code = 0
        sys.stdout.flush()
    except BaseException as error:
        return tell(error)
    return code


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def asyncloop(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Train models with loading, training and hooks side by side."""


@app.command()
def run(
    config: ConfigFile,
    set: Overrides = None,
    progress: Annotated[
        Literal["auto", "rich", "plain", "json", "none"],
        typer.Option(help="How to show progress on standard error; auto: by what standard error is."),
    ] = "auto",
    output_dir: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="The run directory is exactly this one; it must be absent or empty."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train, and end with the run directory and the last metrics.

    Exit codes: 0 finished, 2 wrong config or usage, 3 your code failed or a value was not finite, 4 file system,
    6 stalled, 130 and 143 stopped by Ctrl-C or SIGTERM (a second one ends the process at once), 1 a bug of asyncloop.
    """
    from asyncloop.cli.running import run_config

    raise typer.Exit(run_config(config, set or [], progress=progress, output_dir=output_dir, as_json=as_json))


@app.command()
def check(
    config: ConfigFile,
    set: Overrides = None,
    as_json: AsJson = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Only print every value with its origin; build nothing.")
    ] = False,
) -> None:
    """Do everything but train: read the config, build, run one batch of each stream, and show the shapes."""
    if print_config:
        from asyncloop.cli.origins import print_with_origins

        raise typer.Exit(print_with_origins(config, set or [], as_json=as_json))
    from asyncloop.cli.checking import check_config

    raise typer.Exit(check_config(config, set or [], as_json=as_json))


@app.command()
def hooks(as_json: AsJson = False) -> None:
    """List the hooks that a config can name, with their parameters."""
    from asyncloop.cli.shipped_hooks import list_hooks

    raise typer.Exit(list_hooks(as_json=as_json))
