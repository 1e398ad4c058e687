"""Before a run: build what the config names, and find what building reveals, before anything is made on disk."""

from __future__ import annotations

import inspect
import logging
import math
import sys
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import anyio

from asyncloop.batch import Batch, as_batch, n_examples_of
from asyncloop.blame import is_others
from asyncloop.config import Config, InvalidConfig, Problem
from asyncloop.engine import Engine
from asyncloop.errors import ConfigError, DataError, ModelError
from asyncloop.model import Model
from asyncloop.model_thread import ModelThread
from asyncloop.rundir import RunDir
from asyncloop.stream import EndOfStream, Pass, dataset_streams, open_feed, open_node
from asyncloop.threads import OwnThread, off_loop

__all__ = [
    "CheckReport",
    "Parts",
    "build",
    "build_hooks",
    "check_names",
    "described",
    "dry_run",
    "first_batches",
    "refuse_untrainable",
]

logger = logging.getLogger("asyncloop")


@dataclass(slots=True)
class Parts:
    """What a config describes, built: the dataset off the loop, the model on its thread."""

    config: Config
    rundir: RunDir
    dataset: Any
    model: Any
    hooks: list[Any]
    thread: ModelThread
    stack: AsyncExitStack
    """Closed when the parts are taken apart."""
    dataset_is_open: bool = False

    async def enter_dataset(self) -> None:
        """Enter a dataset that is a context manager, once for all that reads it."""
        if hasattr(self.dataset, "__aenter__") and not self.dataset_is_open:
            await self.stack.enter_async_context(self.dataset)
            self.dataset_is_open = True


@dataclass(slots=True)
class CheckReport:
    """What `check` found. Shapes are those of the first batch; `hooks`: name, kind of delivery, cadence."""

    config: Config
    sources: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = field(default_factory=dict[str, Any])
    outputs: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict[str, Any])
    n_parameters: int | None = None
    hooks: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    problems: list[str] = field(default_factory=list[str])
    batches: dict[str, Batch] = field(default_factory=dict[str, Batch])


@asynccontextmanager
async def build(config: Config, rundir: RunDir, *, restored: bool = False) -> AsyncGenerator[Parts]:
    """Build dataset, model and hooks; the model's thread lives as long as the context. Raises what constructors raise.

    `restored`: the model gets the state of a checkpoint next.
    """
    async with ModelThread() as thread, AsyncExitStack() as stack:
        dataset = await off_loop("building", lambda: config.dataset.build(output_dir=rundir.path))
        offered: dict[str, Any] = {"dataset": dataset, "output_dir": rundir.path}
        model = await thread.call(lambda: config.model.build(restored=restored, **offered))
        with config.model.places.named():
            _check_model(model)
        yield Parts(config, rundir, dataset, model, await build_hooks(config, dataset, rundir), thread, stack)


async def build_hooks(config: Config, dataset: Any, rundir: RunDir) -> list[Any]:
    """The config's hooks, built off the loop. Raises what constructors raise, all their ConfigErrors at once."""

    def build_all() -> list[Any]:
        hooks: list[Any] = []
        problems: list[Problem] = []
        for component in config.hooks:
            try:
                hooks.append(component.build(dataset=dataset, output_dir=rundir.path))
            except InvalidConfig as error:
                problems += error.details
        if problems:
            raise InvalidConfig(*problems)
        return hooks

    return await off_loop("building", build_all)


def refuse_untrainable(parts: Parts, engine: Engine) -> None:
    """ConfigError, with its place, for a model that says itself that it cannot be trained (`cannot_train`)."""
    cannot = getattr(parts.model, "cannot_train", None)
    if cannot is not None and not engine.progress.finished:
        with parts.config.model.places.named():
            raise ConfigError(f"the model {cannot}")


async def check_names(
    parts: Parts, engine: Engine, batches: Mapping[str, Batch] | None = None, *, evaluates: Sequence[str] = ()
) -> None:
    """ConfigError, with places, for each stream and variable that a hook names and that is not there.

    Reads a batch of each stream only if some name is not among the model's declared inputs and outputs, and there are
    no `batches` read already. `evaluates`: the streams of an engine that does not train.
    """
    if not evaluates:
        refuse_untrainable(parts, engine)
    streams = list(evaluates) or [engine.train_stream, *engine.extra_streams]
    there = dataset_streams(engine.dataset)
    lacking = [
        f"{name} wants the stream {stream!r}, but the dataset has {', '.join(there) or 'none'}"
        for hook, name in engine.bus.hooks
        for stream in getattr(hook, "needs_streams", ())
        if stream not in there
    ]
    for hook, name in engine.bus.hooks:
        unseen = [
            stream for stream in getattr(hook, "needs_evaluated", ()) if stream in there and stream not in streams
        ]
        if unseen:
            logger.warning(
                "%s goes by evaluations of %s, which this run does not make by itself; engine.extra_streams has %s",
                name, ", ".join(map(repr, unseen)), ", ".join(map(repr, streams[1:])) or "none",
            )  # fmt: skip
    known = {*engine.model.input_names, *engine.model.output_names}
    unknown = [] if _somebody_adds(engine) else list(_unknown(engine, known))
    if batches is None and any(of_batches for *_, of_batches in unknown):
        await parts.enter_dataset()
        engine.dataset_is_open = True
        batches = await first_batches(engine.dataset, streams, engine.seed)
    known.update(*(batches or {}).values())
    lacking += [
        f"hook {name} wants the variable {variable!r}, which is neither an output of the model nor a source of "
        f"the data (there are: {', '.join(sorted(known))}){_hint(variable, known)}"
        for name, variable, of_batches in unknown
        if variable.partition("/")[0] not in known and (of_batches or _is_slip(variable, known))
    ]
    if lacking:
        with parts.config.places.named():
            raise ConfigError(*lacking)


def _somebody_adds(engine: Engine) -> bool:
    return any(getattr(hook, "add", None) for hook, _ in engine.bus.hooks)


def _unknown(engine: Engine, known: set[str]) -> Iterator[tuple[str, str, bool]]:
    """Hook, variable, and whether the hook gets batches, for names that the model does not declare."""
    wanted = [
        (name, variable, _takes_batches(hook))
        for hook, name in engine.bus.hooks
        for variable in (*(getattr(hook, "variables", None) or ()), *getattr(hook, "needs_variables", ()))
    ]
    of_batches = {variable for _, variable, takes_batches in wanted if takes_batches}
    for name, variable, takes_batches in wanted:
        there = known if takes_batches else known | of_batches  # what a hook reads of batches, it may put into the data
        if variable not in there and variable.partition("/")[0] not in there:
            yield name, variable, takes_batches


def _is_slip(variable: str, known: Iterable[str]) -> bool:
    """Of the epoch's data: whether a name is a slip of the pen. Anybody may log any name, but then his code says it."""
    if not get_close_matches(variable, known, 1, 0.75):
        return False
    quoted = (f'"{variable}"', f"'{variable}'")
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file and file.endswith(".py") and is_others(file) and "site-packages" not in file:
            with suppress(OSError, UnicodeDecodeError):
                text = Path(file).read_text(encoding="utf-8")
                if any(word in text for word in quoted):
                    return False
    return True


def _hint(variable: str, known: Iterable[str]) -> str:
    close = get_close_matches(variable, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


async def dry_run(parts: Parts, engine: Engine) -> CheckReport:
    """One batch of each stream, and each through the model without training. Raises what data and model raise."""
    report = CheckReport(parts.config)
    streams = [engine.train_stream, *engine.extra_streams]
    await parts.enter_dataset()
    report.batches = await first_batches(engine.dataset, streams, engine.seed)
    for stream, batch in report.batches.items():
        missing = [name for name in parts.model.input_names if name not in batch]
        if missing:
            raise DataError(
                f"stream {stream!r} lacks the model's inputs {', '.join(map(repr, missing))}; "
                f"it has {', '.join(map(repr, batch))}"
            )
        report.sources[stream] = {name: described(value) for name, value in batch.items()}
        outputs = await _run_once(parts, batch, stream)
        report.outputs = {name: described(value) for name, value in outputs.items()}
        only_training = getattr(parts.model, "training_output_names", ())
        lacking = [name for name in parts.model.output_names if name not in outputs and name not in only_training]
        if lacking and not report.problems:
            report.problems.append(
                f"the model declares the output {', '.join(lacking)} but gave only {', '.join(outputs) or 'nothing'}"
            )
    weights = getattr(parts.model, "weights", None)
    if weights is not None:
        arrays = cast("Mapping[str, Any]", await parts.thread.call(weights))
        report.n_parameters = sum(math.prod(getattr(array, "shape", ())) for array in arrays.values())
    for hook, name in engine.bus.hooks:
        report.hooks.append((name, _kind(hook), str(getattr(hook, "every", None) or "every event")))
    return report


async def first_batches(dataset: Any, streams: Sequence[str], seed: int) -> dict[str, Batch]:
    """The first batch of each stream, as an evaluation would read it. The dataset has been entered."""
    return {stream: await _first_batch(dataset, stream, seed) for stream in streams}


async def _first_batch(dataset: Any, stream: str, seed: int) -> Batch:
    at = Pass(stream, 0, seed)
    problem: Exception | None = None
    value: Any = None
    async with OwnThread(f"asyncloop first batch of {stream!r}") as reader:
        node = await open_node(dataset, stream, None, at)
        async with anyio.create_task_group() as tasks:
            feed = open_feed(
                node, at, None, buffer=1, known_cost_s=None, tasks=tasks,
                close_on_model_thread=reader.call, on_exhausted=lambda: None,
            )  # fmt: skip
            try:
                value, _ = await reader.call(feed.next, on_cancel=feed.interrupt)
            except EndOfStream:
                problem = DataError(f"stream {stream!r} is empty")
            except Exception as error:
                error.add_note(f"stream {stream!r}, batch 0")
                problem = error
            await feed.aclose()
    if problem is not None:
        raise problem
    batch = as_batch(value, stream, 0)
    n_examples_of(batch, stream, 0)
    return batch


async def _run_once(parts: Parts, batch: Batch, stream: str) -> Mapping[str, Any]:
    run = parts.model.run
    try:
        if inspect.iscoroutinefunction(run):
            outputs: Any = await run(batch, train=False, stream=stream)
        else:
            outputs = await parts.thread.call(lambda: run(batch, train=False, stream=stream))
        if isinstance(outputs, Mapping):
            outputs = await parts.thread.call(_evaluated, cast("Mapping[str, Any]", outputs))
    except Exception as error:
        error.add_note(f"model.run on stream {stream!r}, batch 0")
        raise
    if not isinstance(outputs, Mapping):
        raise ModelError(f"model.run must return a mapping of output names to values, not {type(outputs).__name__!r}")
    return cast("Mapping[str, Any]", outputs)


def _evaluated(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """The outputs with those evaluated that come on demand."""
    return {name: value() if callable(value) else value for name, value in outputs.items()}


def _check_model(model: Any) -> None:
    if not isinstance(model, Model):
        lacking = [
            name
            for name in ("input_names", "output_names", "run", "state_dict", "load_state_dict")
            if not hasattr(model, name)
        ]
        raise ConfigError(f"{type(model).__name__} is no model: it lacks {', '.join(lacking)}")


def _takes_batches(hook: Any) -> bool:
    return hasattr(hook, "after_batch") or hasattr(hook, "after_batches")


def described(value: Any) -> tuple[str, tuple[int, ...]]:
    """dtype and shape of a source or an output; of what is no array its type and length."""
    dtype = getattr(value, "dtype", None)
    if dtype is not None:
        return str(dtype), tuple(value.shape)
    kind = cast("type[Any]", type(value))
    return kind.__name__, (len(value),) if hasattr(kind, "__len__") and kind not in (str, dict) else ()


def _kind(hook: Any) -> str:
    kinds = [name for name in ("lockstep", "background") if getattr(hook, name, False)]
    return ", ".join(kinds) or ("async" if _is_async(hook) else "thread")


def _is_async(hook: Any) -> bool:
    methods = [
        getattr(hook, name, None) for name in ("after_batch", "after_batches", "after_epoch", "after_evaluation")
    ]
    return any(inspect.iscoroutinefunction(method) for method in methods)
