"""`asyncloop init`: a project that runs as it is made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from asyncloop.cli.logs import configure_logging
from asyncloop.cli.terminal import complain
from asyncloop.config.json_schema import json_schema
from asyncloop.errors import ConfigError
from asyncloop.storage import storage_error

__all__ = ["Template", "make_project"]

Template = Literal["numpy", "torch", "stream"]

_FILES: Mapping[Template, Mapping[str, str]] = {
    "numpy": {"cfg.toml": "numpy", "model.py": "numpy", "data.py": "moons", "test_project.py": "moons"},
    "torch": {"cfg.toml": "torch", "model.py": "torch", "data.py": "moons", "test_project.py": "moons"},
    "stream": {"cfg.toml": "stream", "model.py": "stream", "data.py": "stream", "test_project.py": "stream"},
}
_SCHEMA = "cfg.schema.json"

_BESIDE: Mapping[str, str] = {".gitignore": "runs/\n", "pytest.ini": "[pytest]\nnorecursedirs = runs .*\n"}
"""What the project's tools should know of run directories, which hold copies of its code and of its test."""


def make_project(directory: str, template: Template) -> int:
    """Write the template's files, and the schema by which editors complete the config's keys. Overwrites nothing."""
    configure_logging()
    folder = Path(directory)
    if folder.is_file():
        raise ConfigError(f"{folder} is a file; name the directory to make the project in, e.g. `asyncloop init mine`")
    files = {name: _text(home, name) for name, home in _FILES[template].items()}
    files["cfg.toml"] = f"#:schema ./{_SCHEMA}\n{files['cfg.toml']}"
    there = [str(folder / name) for name in (*files, _SCHEMA) if (folder / name).exists()]
    if there:
        raise ConfigError(f"{', '.join(there)}: there already; nothing was written. Choose another directory")
    _write(folder, files)
    beside = {name: text for name, text in _BESIDE.items() if not (folder / name).exists()}
    _write(folder, beside)
    if template == "torch" and find_spec("torch") is None:
        complain("this project needs PyTorch: pip install 'asyncloop[torch]'")
    _write(folder, {_SCHEMA: json.dumps(json_schema(folder / "cfg.toml"), indent=1) + "\n"})
    for name in (*files, *beside, _SCHEMA):
        print(folder / name)
    prefix = "" if folder == Path() else f"cd {folder} && "
    complain(f"now: {prefix}asyncloop check cfg.toml, then asyncloop run cfg.toml; pytest runs its test")
    return 0


def _text(home: str, name: str) -> str:
    return (resources.files("asyncloop") / "templates" / home / name).read_text(encoding="utf-8")


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / name, "x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise storage_error("write", folder / name, error) from error
