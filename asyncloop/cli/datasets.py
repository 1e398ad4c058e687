"""`asyncloop dataset`: a dataset by itself, without the model it is for."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from difflib import get_close_matches
from pprint import pformat
from typing import Any

import anyio
import numpy as np

from asyncloop.batch import Batch
from asyncloop.cli.logs import configure_logging
from asyncloop.cli.terminal import complain, print_json, print_table, strong
from asyncloop.config import load_dataset
from asyncloop.errors import ConfigError
from asyncloop.preflight import described, first_batches
from asyncloop.runs import uvloop_is_there
from asyncloop.stream import dataset_streams
from asyncloop.threads import off_loop

__all__ = ["call_method", "show_streams"]


def call_method(method: str, source: str, overrides: Sequence[str], *, as_json: bool) -> int:
    """Build the dataset, call `method` without arguments (plain: off the loop; async: awaited), print what it returns."""

    async def call(dataset: Any, seed: int) -> Any:
        function = _method_of(dataset, method, source)
        if inspect.iscoroutinefunction(function):
            return await function()
        return await off_loop(f"dataset {method}", function)

    found = _with_dataset(source, overrides, call)
    if as_json:
        print_json(found)
    elif found is not None:
        print(found if isinstance(found, str) else pformat(found))
    return 0


def show_streams(source: str, overrides: Sequence[str], *, as_json: bool) -> int:
    """Name, dtype, shape and range of each source in each stream's first batch; 3 if some stream fails."""
    failed: dict[str, Exception] = {}

    async def look(dataset: Any, seed: int) -> dict[str, Batch]:
        batches: dict[str, Batch] = {}
        for stream in dataset_streams(dataset):
            try:
                batches |= await first_batches(dataset, [stream], seed)
            except Exception as error:
                failed[stream] = error
        return batches

    batches = _with_dataset(source, overrides, look)
    rows = [(stream, *_row(name, value)) for stream, batch in batches.items() for name, value in batch.items()]
    if as_json:
        names = ("source", "dtype", "shape", "min", "max")
        streams = {
            stream: [dict(zip(names, _facts(*each), strict=True)) for each in batch.items()]
            for stream, batch in batches.items()
        }
        problems = {stream: f"{type(error).__name__}: {error}" for stream, error in failed.items()}
        print_json({"streams": streams, "failed": problems})
    elif rows:
        print_table(rows, ("stream", "source", "dtype", "shape", "range"))
    for stream, error in failed.items():
        complain(f"{strong('error')}: stream {stream!r}: {type(error).__name__}: {error}")
    if not rows and not failed:
        complain("the dataset has no streams: write a method `def train_stream(self)` that yields batches")
    return 3 if failed else 0


def _with_dataset(source: str, overrides: Sequence[str], work: Callable[[Any, int], Awaitable[Any]]) -> Any:
    configure_logging()
    run, component = load_dataset(source, set=overrides)

    async def main() -> Any:
        dataset = await off_loop("building", lambda: component.build(output_dir=None))
        async with AsyncExitStack() as stack:
            if hasattr(dataset, "__aenter__"):
                await stack.enter_async_context(dataset)
            return await work(dataset, run.seed)

    return anyio.run(main, backend_options={"use_uvloop": uvloop_is_there()})


def _method_of(dataset: Any, method: str, source: str) -> Callable[[], Any]:
    """ConfigError for what cannot be called without arguments, or gives nothing that can be printed."""
    function = None if method.startswith("__") else getattr(dataset, method, None)
    if not callable(function):
        raise _no_method(dataset, method)
    if method.endswith("_stream"):
        raise ConfigError(f"{method} is a stream: `asyncloop dataset info {source}` shows its first batch")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # not written in Python
        return function
    required = [name for name, each in signature.parameters.items() if _is_required(each)]
    if required:
        raise ConfigError(
            f"{type(dataset).__name__}.{method} needs {', '.join(required)}, and is called without arguments here: "
            "give defaults in its signature, or write a method that calls it"
        )
    return function


def _is_required(parameter: inspect.Parameter) -> bool:
    optional = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not optional


def _no_method(dataset: Any, method: str) -> ConfigError:
    there = [name for name in dir(dataset) if not name.startswith("_") and callable(getattr(dataset, name, None))]
    close = get_close_matches(method, there, 1)
    hint = f"; did you mean {close[0]!r}?" if close else f" (it has: {', '.join(there) or 'none'}, and `info`)"
    return ConfigError(f"{type(dataset).__name__} has no method {method!r}{hint}")


def _facts(name: str, value: Any) -> tuple[str, str, list[int], float | None, float | None]:
    dtype, shape = described(value)
    try:
        array = np.asarray(value)
        numeric = array.dtype.kind in "biuf" and array.size > 0
        low, high = (array.min().item(), array.max().item()) if numeric else (None, None)
    except (TypeError, ValueError):  # ragged, or on a device
        low = high = None
    return name, dtype, list(shape), low, high


def _row(name: str, value: Any) -> tuple[str, str, str, str]:
    _, dtype, shape, low, high = _facts(name, value)
    return name, dtype, " × ".join(map(str, shape)) or "scalar", f"{low:g} … {high:g}" if low is not None else "–"
