"""The commands and their options. A command's own module is imported when the command runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any, Literal

import typer

from asyncloop._version import __version__

__all__ = ["app", "run_command"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_BACK, _SETUP = "Look back", "Set up"


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


def _runs_beginning_with(incomplete: str) -> list[str]:
    """For the shell's completion: ids of the runs in `runs`, the newest first."""
    from pathlib import Path

    from asyncloop.archive import runs_below

    try:
        ids = [run.id for run in reversed(runs_below(Path("runs")))]
    except OSError:  # nobody wants an error in the middle of a word
        ids = []
    return [name for name in ("latest", *ids) if name.startswith(incomplete)]


ConfigFile = Annotated[
    str, typer.Argument(metavar="CFG", help="The config: a TOML file, or a directory with a cfg.toml.")
]
RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run: its id, a unique prefix, a path, or `latest`.", autocompletion=_runs_beginning_with
    ),
]
Root = Annotated[str, typer.Argument(metavar="[ROOT]", help="The directory that holds the run directories.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Another value for a key, e.g. model.lr=0.1; may be repeated."),
]
Progress = Annotated[
    Literal["auto", "rich", "plain", "json", "none"],
    typer.Option(help="How to show progress on standard error; auto: by what standard error is."),
]
MaxTime = Annotated[
    str | None,
    typer.Option(metavar="TIME", help='Stop after "90 s", "30 min", "2 h" or "1:30:00", saved; exit code 75.'),
]
OutputDir = Annotated[
    str | None, typer.Option(metavar="DIR", help="Write to exactly this directory; it must be absent or empty.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Results as JSON on standard output.")]


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
    if not {"-h", "--help"} & {*sys.argv}:
        _refuse_deleted_directory()


def _refuse_deleted_directory() -> None:
    """What every command would otherwise come upon somewhere, with words of its own."""
    try:
        os.getcwd()
    except FileNotFoundError:
        from asyncloop.errors import StorageError

        raise StorageError("the current directory has been deleted; change to one that is there (cd)") from None


# --- train --------------------------------------------------------------------------------------------------------


@app.command()
def run(
    config: ConfigFile,
    set: Overrides = None,
    init_from: Annotated[
        str | None,
        typer.Option(metavar="RUN[:CHECKPOINT]", help="Begin with the weights of another run; counters at zero."),
    ] = None,
    max_time: MaxTime = None,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="A few batches of each stream, a check that nobody changes one, a debugger."),
    ] = False,
    rm: Annotated[bool, typer.Option("--rm", help="Remove the run directory at the end, whatever the end is.")] = False,
    progress: Progress = "auto",
    output_dir: OutputDir = None,
    as_json: AsJson = False,
) -> None:
    """Train, and end with the run directory and the last metrics.

    Exit codes: 0 finished, 2 wrong config or usage, 3 your code failed or a value was not finite, 4 file system or
    damaged checkpoint, 5 no such run, 6 stalled, 75 stopped by --max-time, 130 and 143 stopped by Ctrl-C or SIGTERM
    (a second one ends the process at once), 1 a bug of asyncloop.
    """
    from asyncloop.cli.running import run_config

    options: dict[str, Any] = {"progress": progress, "output_dir": output_dir, "max_time": max_time}
    raise typer.Exit(run_config(config, set or [], as_json=as_json, debug=debug, rm=rm, init_from=init_from, **options))


@app.command()
def resume(
    run: RunName,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="CHECKPOINT", help="Go on from this one: best, or a step; else from the newest."
        ),
    ] = None,
    set: Overrides = None,
    force: Annotated[
        bool, typer.Option("--force", help="Go on even if a change leads to other steps; it is recorded.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a damaged checkpoint instead of taking the one before.")
    ] = False,
    max_time: MaxTime = None,
    progress: Progress = "auto",
    as_json: AsJson = False,
) -> None:
    """Go on exactly where a run stopped, in its own directory. A finished run: nothing to do, unless it gets more epochs.

    Workers, buffer, hooks that only observe, and more epochs or steps may be different; what would lead to other steps
    is refused by name. Exit codes as for `run`; 5: there is nothing to resume.
    """
    from asyncloop.cli.running import resume_run

    options: dict[str, Any] = {"checkpoint": checkpoint, "force": force, "strict": strict, "max_time": max_time}
    raise typer.Exit(resume_run(run, set or [], as_json=as_json, progress=progress, **options))


@app.command("eval")
def evaluate(
    streams_and_run: Annotated[
        list[str],
        typer.Argument(metavar="STREAM… RUN", help="Streams to evaluate, then the run whose weights to use."),
    ],
    config: Annotated[
        str | None, typer.Option(metavar="CFG", help="Another config than the one the run has stored.")
    ] = None,
    checkpoint: Annotated[
        str, typer.Option(metavar="NAME", help="latest, best, or a step: 500 or step-00000500.")
    ] = "latest",
    watch: Annotated[
        bool, typer.Option("--watch", help="Evaluate each checkpoint once, as it comes, until the run is over.")
    ] = False,
    keep_outputs: Annotated[
        bool, typer.Option("--keep-outputs", help="Also keep the batches and outputs on disk, for --callbacks-only.")
    ] = False,
    callbacks_only: Annotated[
        bool,
        typer.Option("--callbacks-only", help="Run the hooks over the outputs that were kept last, without the model."),
    ] = False,
    set: Overrides = None,
    progress: Progress = "auto",
    output_dir: OutputDir = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate streams of a saved run, each as its own eval section of the config says. Never trains, never saves.

    Results go to a directory under the run's eval/. Exit codes as for `run`; 5: there is no such run, or nothing kept.
    """
    from asyncloop.cli.running import evaluate_run, watch_run

    *streams, run = streams_and_run
    if not streams:
        raise typer.BadParameter("name at least one stream before the run, e.g. `asyncloop eval valid latest`")
    options: dict[str, Any] = {"config": config, "progress": progress, "as_json": as_json, "keep_outputs": keep_outputs}
    if watch:
        if checkpoint != "latest" or output_dir is not None or callbacks_only:
            raise typer.BadParameter(
                "--watch takes every checkpoint, each with a directory: no --checkpoint, --output-dir, --callbacks-only"
            )
        raise typer.Exit(watch_run(streams, run, set or [], **options))
    options |= {"checkpoint": checkpoint, "output_dir": output_dir, "callbacks_only": callbacks_only}
    raise typer.Exit(evaluate_run(streams, run, set or [], **options))


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
def dataset(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="A method of the dataset, or `info`.")],
    config: ConfigFile,
    set: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Call a method of the dataset; `info` shows names, dtypes, shapes and ranges of each stream's first batch."""
    from asyncloop.cli.datasets import call_method, show_streams

    if method == "info":
        raise typer.Exit(show_streams(config, set or [], as_json=as_json))
    raise typer.Exit(call_method(method, config, set or [], as_json=as_json))


# --- look back ----------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=_BACK)
def ls(
    root: Root = "runs",
    long: Annotated[bool, typer.Option("--long", "-l", help="Also classes, size and directory.")] = False,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Also runs deeper down, and evaluations of runs.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List runs, the oldest first."""
    from asyncloop.cli.looking_back import list_runs

    raise typer.Exit(list_runs(root, long=long, recursive=recursive, as_json=as_json))


@app.command(rich_help_panel=_BACK)
def show(run: RunName, as_json: AsJson = False) -> None:
    """Show one run: its end, its metrics, its config, its checkpoints and files."""
    from asyncloop.cli.looking_back import show_run

    raise typer.Exit(show_run(run, as_json=as_json))


@app.command(rich_help_panel=_BACK)
def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN RUN…", help="Two runs or more.", autocompletion=_runs_beginning_with)
    ],
    as_json: AsJson = False,
) -> None:
    """Show where the configs of runs differ, and their metrics side by side."""
    from asyncloop.cli.looking_back import compare_runs

    if len(runs) < 2:
        raise typer.BadParameter("name two runs or more")
    raise typer.Exit(compare_runs(runs, as_json=as_json))


@app.command(rich_help_panel=_BACK)
def prune(
    root: Root = "runs",
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", "-e", min=0, help="Remove runs with fewer epochs done, instead of those not saved."),
    ] = None,
    subdirectories: Annotated[
        bool, typer.Option("--subdirs", "-s", help="Also directories that hooks have made in the runs that stay.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove runs that have left no checkpoint. Shows them and asks first; a run that is under way stays."""
    from asyncloop.cli.pruning import prune_runs

    raise typer.Exit(prune_runs(root, epochs=epochs, subdirectories=subdirectories, yes=yes, as_json=as_json))


# --- set up -------------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=_SETUP)
def init(
    directory: Annotated[str, typer.Argument(metavar="[DIR]", help="Where; the current directory by default.")] = ".",
    template: Annotated[
        Literal["numpy", "torch", "stream"],
        typer.Option("--template", "-t", help="A model in numpy, one in PyTorch, or one that learns from a live feed."),
    ] = "numpy",
) -> None:
    """Make a project that runs: config, dataset, model, a test. Never overwrites a file."""
    from asyncloop.cli.init import make_project

    raise typer.Exit(make_project(directory, template))


@app.command(rich_help_panel=_SETUP)
def schema(
    config: Annotated[
        str | None, typer.Argument(metavar="[CFG]", help="A config whose own classes the schema shall know.")
    ] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="FILE", help="Write it to a file.")] = None,
) -> None:
    """Print the JSON Schema of a config, for editors: put `#:schema ./cfg.schema.json` on its first line."""
    from asyncloop.cli.schema import write_schema

    raise typer.Exit(write_schema(config, output))


@app.command(rich_help_panel=_SETUP)
def hooks(as_json: AsJson = False) -> None:
    """List the hooks that a config can name, with their parameters."""
    from asyncloop.cli.shipped_hooks import list_hooks

    raise typer.Exit(list_hooks(as_json=as_json))


@app.command(rich_help_panel=_SETUP)
def doctor(as_json: AsJson = False) -> None:
    """Report versions, cores, devices and disk, and mistakes that are often made."""
    from asyncloop.cli.doctor import examine

    raise typer.Exit(examine(as_json=as_json))
