"""A project folder with components to name in configs; each test gets its own, as the current directory."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from asyncloop.errors import ConfigError

PARTS = """
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import BaseModel, Field, model_validator

from asyncloop.hook import Hook

if TYPE_CHECKING:
    from somewhere import Device

built = []


class Recorded:
    def __new__(cls, *args, **kwargs):
        built.append(cls.__name__)
        return super().__new__(cls)


class Data:
    def __init__(self, n: int = 8, where: Path = Path("data"), names: Sequence[str] = (), limits=(1, 2),
                 words: Iterable[str] = (), device: Device | None = None, output_dir=None):
        self.__dict__.update(vars())
        built.append("Data")


class Anything:
    def __init__(self, **kwargs):
        self.kwargs = kwargs


class Net:
    def __init__(self, dataset, lr: float = 0.1, sizes: tuple[int, ...] = (3, 4), act: Literal["relu", "tanh"] = "relu",
                 label: str = "", schedule: Mapping[str, float] | None = None, loose=None):
        self.dataset, self.lr, self.sizes, self.act, self.label = dataset, lr, sizes, act, label
        self.schedule, self.loose = schedule, loose


class Needy:
    def __init__(self, rate: float, *, dataset):
        self.rate = rate


class Save(Hook):
    def __init__(self, every: str = "1 epoch", keep: int | None = None, output_dir=None):
        self.every, self.keep, self.output_dir = every, keep, output_dir


class Watch(Hook):
    pass


class Table(Hook):
    def __init__(self, variables: Mapping[str, Sequence[str]] | Sequence[str] = ()):
        self.variables = variables


class Settings(BaseModel):
    low: int = 0
    high: Annotated[int, Field(le=10)] = 1

    @model_validator(mode="after")
    def _ordered(self):
        if self.low > self.high:
            raise ValueError("low must not exceed high")
        return self


class Shape(Protocol):
    def run(self): ...


class Plain(Shape):
    def run(self): ...


NUMBER = 3
"""

BASE = """
[dataset]
class = "parts:Data"
[model]
class = "parts:Net"
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "parts.py").write_text(PARTS)
    monkeypatch.chdir(tmp_path)
    search_path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = search_path
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None)
        if file is None or str(tmp_path) in os.path.realpath(file):
            del sys.modules[name]


@pytest.fixture
def write(project: Path) -> Callable[..., str]:
    """Write a config, by default one that begins with a dataset and a model in lines 1 to 4; gives its name."""

    def write(text: str = "", *, name: str = "cfg.toml", base: str = BASE) -> str:
        (project / name).write_text((base + dedent(text)).lstrip("\n"))
        return name

    return write


@pytest.fixture
def problems() -> Callable[..., list[str]]:
    """The messages of the ConfigError that loading raises."""

    def problems(*args: object, **kwargs: object) -> list[str]:
        from asyncloop.config import load_config

        with pytest.raises(ConfigError) as caught:
            load_config(*args, **kwargs)  # pyright: ignore
        return list(caught.value.problems)

    return problems
