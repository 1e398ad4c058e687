"""`asyncloop schema`: what a config may hold, for the editor that it is written in."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

from asyncloop.cli.logs import configure_logging
from asyncloop.cli.terminal import complain
from asyncloop.config.json_schema import json_schema
from asyncloop.storage import storage_error, write_atomically

__all__ = ["write_schema"]


def write_schema(config: str | None, output: str | None) -> int:
    """Print the JSON Schema of all configs, or of this one with its own classes; with `output` into that file."""
    configure_logging()
    with redirect_stdout(sys.stderr):  # for modules that print something when they are imported
        schema = json_schema(config)
    text = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
    if output is None:
        print(text, end="")
        return 0
    path = Path(output).absolute()
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise storage_error("write", path, error) from error
    complain(f"{output} is written; for your editor, the first line of the config:\n#:schema {_from(config, path)}")
    return 0


def _from(config: str | None, path: Path) -> str:
    """The schema's file as its config may name it: by the path from there, if it lies beside it or below."""
    folder = Path(config or ".").absolute()
    folder = folder if folder.is_dir() else folder.parent
    return f"./{path.relative_to(folder).as_posix()}" if path.is_relative_to(folder) else path.as_uri()
