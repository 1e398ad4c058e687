"""Saved runs as one model: an Ensemble of them asked together, or a Sequence of them asked one after the other.

Both only evaluate. Their weights are those of the runs, which are read and never changed.
"""

from __future__ import annotations

import contextvars
import inspect
import json
import logging
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, ClassVar, Literal, TypeAlias, cast

from asyncloop.archive import SavedRun, find_run, is_run, read_run, runs_below
from asyncloop.batch import Batch
from asyncloop.checkpoint import Checkpoints
from asyncloop.errors import CheckpointError, ConfigError, ModelError, NothingToResumeError
from asyncloop.evaluation import load_model
from asyncloop.models.aggregation import Aggregation, aggregated, is_lazy
from asyncloop.models.arguments import Arguments
from asyncloop.stats import log, metric_sink
from asyncloop.storage import storage_errors

__all__ = ["Ensemble", "Sequence"]

logger = logging.getLogger("asyncloop")

_Names: TypeAlias = "tuple[tuple[str, ...], tuple[str, ...]]"
"""Inputs and outputs."""

_THREADS = 8
"""How many members run at the same time, at most."""


class Ensemble:
    """Saved models that run on the same batch, and their outputs aggregated. Inference only.

    * `runs`: directories, ids or unique prefixes, or `latest`, below `root` ("runs" if that is not given). Without
      `runs` every run directly below `root` that has a checkpoint, the oldest first, but no Ensemble's or Sequence's.
      `checkpoint` is that of each: `latest`, `best` or a step.
    * `aggregation`: the `mean` of numbers (of integers a float), or the `majority`: for each element the value that
      most members gave, numbers or strings, of equally frequent ones the smallest. Outputs may be arrays of any shape,
      scalars, or mappings of these; tensors are brought to the host.
    * `outputs` names those to aggregate; without it they are those that all members declare, in the first one's order.
    * Members are loaded at the first run, with `eager` when this is built. A member whose constructor names `dataset`
      gets this model's; if there is none, its own run's.

    Outputs of other names, shapes or kinds than the first member's are a ModelError that names run and output.
    Call it from one thread at a time. Members run concurrently, each always on the same thread: the caller's own and
    up to seven more, which end with the caller's thread, with `close`, or with this object. Which member is ready
    first has no influence on anything.
    """

    has_no_weights: ClassVar[bool] = True
    """None of its own, so that it can be evaluated without a checkpoint."""

    def __init__(
        self,
        runs: list[str] | None = None,
        root: str | None = None,
        aggregation: Literal["mean", "majority"] = "mean",
        outputs: list[str] | None = None,
        checkpoint: str = "latest",
        eager: bool = False,
        dataset: Any = None,
    ) -> None:
        """ConfigError if an argument is wrong or a run is not there; CheckpointError if a checkpoint is not.

        ModelError if the members do not go together, as far as their checkpoints tell; else when they are loaded.
        """
        check = Arguments(type(self).__name__)
        check.choice("aggregation", aggregation, ("mean", "majority"))
        check.done()
        if outputs is not None and (isinstance(outputs, str) or not outputs):
            raise ConfigError(f"Ensemble: outputs = {outputs!r}, expected a list of names; leave it out for all")
        self._aggregation: Aggregation = aggregation
        self._outputs = outputs
        paths = _every_run(type(self).__name__, root) if runs is None else _found(type(self).__name__, runs, root)
        self._members = _Members(paths, checkpoint, dataset, self._names_of)
        self._threads = _Threads(len(paths))
        if eager:
            self._members.load(self._threads.call)

    @property
    def input_names(self) -> tuple[str, ...]:
        """What the members want, together. Loads them if their checkpoints do not say what that is."""
        return self._members.names[0]

    @property
    def output_names(self) -> tuple[str, ...]:
        """What is aggregated. Loads the members if their checkpoints do not say what they give."""
        return self._members.names[1]

    def run(self, batch: Batch, *, train: bool, stream: str) -> Mapping[str, Any]:
        """The aggregated outputs; one that is a callable with some member is a callable here too.

        ModelError for `train=True`, for an input that the batch lacks, for outputs that do not go together. What a
        member raises comes out with a note that names its run, when all have come to their end.
        """
        _refuse_training(self, train)
        members = self._members.loaded(self._threads.call)
        for member in members:
            member.check_inputs(batch, stream)
        given = self._run_each(members, batch, stream)
        owners = [str(member) for member in members]
        return {
            name: aggregated(name, _each_one(name, members, given), owners, self._aggregation)
            for name in self.output_names
        }

    def state_dict(self) -> Mapping[str, Any]:
        """Nothing: the weights are in the checkpoints of the runs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """ModelError for anything but nothing."""
        _refuse_state(self, state)

    def close(self) -> None:
        """End the threads, those under way after their batch. A later `run` starts new ones."""
        self._threads.close()

    def _run_each(self, members: list[_Member], batch: Batch, stream: str) -> list[Mapping[str, Any]]:
        """What each member gave; and what each has logged is logged, in their order."""
        logged: list[list[tuple[str, Any]]] = [[] for _ in members]

        def run(index: int) -> Mapping[str, Any]:
            metric_sink.set(lambda name, value: logged[index].append((name, value)))
            return members[index].run(batch, stream)

        given = self._threads.call_each(run)
        for entries in logged:
            for name, value in entries:
                log(name, value)
        return given

    def _names_of(self, members: list[_Member]) -> _Names:
        inputs = dict.fromkeys(name for member in members for name in member.input_names)
        if self._outputs is None:
            common = [name for name in members[0].output_names if all(name in each.output_names for each in members)]
            if not common:
                listed = "; ".join(f"{each} has {_listed(each.output_names)}" for each in members)
                raise ModelError(f"Ensemble: the runs have no output in common: {listed}")
            return tuple(inputs), tuple(common)
        for member in members:
            for name in self._outputs:
                if name not in member.output_names:
                    raise ModelError(
                        f"Ensemble: outputs: {member} has no output {name!r}, only {_listed(member.output_names)}; "
                        "name what all runs have, or leave that run out"
                    )
        return tuple(inputs), tuple(dict.fromkeys(self._outputs))


class Sequence:
    """Saved models one after the other, each with the batch and the outputs of all before it. Inference only.

    * `runs`, in the order in which they run: directories, ids or unique prefixes, or `latest`, below `root` ("runs" if
      that is not given). `checkpoint` is that of each: `latest`, `best` or a step.
    * The outputs are those of all of them. One name given twice is a ModelError that names both runs; so is an input
      that neither the batch nor an earlier model gives, with the run that lacks it.
    * Models are loaded at the first run, with `eager` when this is built. A model whose constructor names `dataset`
      gets this one's; if there is none, its own run's.

    Everything happens on the thread that calls. An output that is a callable stays one, unless a later model wants it.
    """

    has_no_weights: ClassVar[bool] = True
    """None of its own, so that it can be evaluated without a checkpoint."""

    def __init__(
        self,
        runs: list[str],
        root: str | None = None,
        checkpoint: str = "latest",
        eager: bool = False,
        dataset: Any = None,
    ) -> None:
        """ConfigError if an argument is wrong or a run is not there; CheckpointError if a checkpoint is not.

        ModelError if the models do not go together, as far as their checkpoints tell; else when they are loaded.
        """
        paths = _found(type(self).__name__, runs, root)
        self._members = _Members(paths, checkpoint, dataset, _names_in_sequence)
        if eager:
            self._members.load()

    @property
    def input_names(self) -> tuple[str, ...]:
        """What the batch has to give. Loads the models if their checkpoints do not say what that is."""
        return self._members.names[0]

    @property
    def output_names(self) -> tuple[str, ...]:
        """What all of them give, in their order. Loads the models if their checkpoints do not say what that is."""
        return self._members.names[1]

    def run(self, batch: Batch, *, train: bool, stream: str) -> Mapping[str, Any]:
        """The outputs of all models. ModelError for `train=True` and for names that are missing or there twice.

        What a model raises comes out with a note that names its run.
        """
        _refuse_training(self, train)
        members = self._members.loaded()
        outputs: dict[str, Any] = {}
        givers = dict.fromkeys(batch, "the batch")
        for index, member in enumerate(members):
            wanted = {name for later in members[index + 1 :] for name in later.input_names}
            feeds = {**batch, **{name: value for name, value in outputs.items() if not is_lazy(value)}}
            member.check_inputs(feeds, stream)
            for name, value in member.run(feeds, stream).items():
                if name in givers:
                    raise _given_twice(name, givers[name], str(member))
                givers[name] = str(member)
                outputs[name] = value() if name in wanted and is_lazy(value) else value
        return outputs

    def state_dict(self) -> Mapping[str, Any]:
        """Nothing: the weights are in the checkpoints of the runs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """ModelError for anything but nothing."""
        _refuse_state(self, state)


def _names_in_sequence(members: list[_Member]) -> _Names:
    givers: dict[str, int] = {}
    for index, member in enumerate(members):
        for name in member.output_names:
            if name in givers:
                raise _given_twice(name, str(members[givers[name]]), str(member))
            givers[name] = index
    outside: dict[str, None] = {}
    for index, member in enumerate(members):
        for name in member.input_names:
            giver = givers.get(name)
            if giver is not None and giver >= index:
                raise ModelError(
                    f"Sequence: {member} lacks its input {name!r}, which only {members[giver]} gives, not one before "
                    "it; change the order of runs"
                )
            if giver is None:
                outside[name] = None
    return tuple(outside), tuple(givers)


def _given_twice(name: str, first: str, second: str) -> ModelError:
    return ModelError(
        f"Sequence: the output {name!r} of {second} has the name of one of {first}; rename one of the two"
    )


# --- the runs -----------------------------------------------------------------------------------------------------


def _found(owner: str, runs: list[str], root: str | None) -> list[Path]:
    """The directories of the named runs, their order kept."""
    if isinstance(runs, str) or not runs:
        raise ConfigError(f"{owner}: runs = {runs!r}, expected a list of run directories, ids or prefixes")
    below = Path("runs" if root is None else root)
    paths: list[Path] = []
    problems: list[str] = []
    for run in runs:
        try:
            paths.append(below / run if run and is_run(below / run) else find_run(run, below))
        except NothingToResumeError as error:
            problems.append(f"{owner}: runs: {error}")
    if problems:
        raise ConfigError(*problems)
    return [path.absolute() for path in paths]


def _every_run(owner: str, root: str | None) -> list[Path]:
    """The runs below `root` that have a model to ask."""
    if root is None:
        raise ConfigError(f"{owner}: give runs, a list of saved runs, or root, a directory with all of them")
    there = [run for run in runs_below(Path(root)) if not _is_over_saved_ones(run)]
    found = [run.path.absolute() for run in there if Checkpoints(run.path / "checkpoints").names()]
    if not found:
        raise ConfigError(
            f"{owner}: root = {root!r} has no run with a checkpoint directly below it (runs: {len(there)})"
        )
    if len(found) < len(there):
        left = ", ".join(run.path.name for run in there if run.path.absolute() not in found)
        logger.warning("%s: left out, for they have no checkpoint: %s", owner, left)
    return found


def _is_over_saved_ones(run: SavedRun) -> bool:
    """Whether its model is one of this module; below `root` it would have itself as a member."""
    model = run.config.get("model", {})
    return str(model.get("class")).rpartition(":")[2] in __all__


@dataclass(slots=True)
class _Member:
    """One saved run, and its model once that is loaded. The names are declared ones."""

    path: Path
    checkpoint: str
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    is_described: bool = False
    model: Any = None

    def __str__(self) -> str:
        return f"run {self.path.name}"

    def describe(self) -> None:
        """Take the names from the checkpoint, if it has them. Raises CheckpointError if there is no such checkpoint."""
        try:
            manifest = Checkpoints(self.path / "checkpoints").find(self.checkpoint) / "manifest.json"
        except CheckpointError:
            if _is_over_saved_ones(read_run(self.path)):
                return  # it has no weights of its own
            raise
        with storage_errors("read", manifest):
            content = manifest.read_bytes()
        try:
            record = json.loads(content)["engine"]
            if "input_names" in record and "output_names" in record:
                self._declare(record["input_names"], record["output_names"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{manifest} is damaged: {error}") from error

    def load(self, dataset: Any) -> None:
        """Build the model and load its weights, on the calling thread. Raises what that raises, the run noted."""
        try:
            model = load_model(self.path, self.checkpoint, dataset=dataset)
        except Exception as error:
            error.add_note(f"loading {self.path}")
            raise
        if inspect.iscoroutinefunction(model.run):
            raise ModelError(f"{self}: its model's run is async, which works only in a run of its own, not as a part")
        self.model = model
        self._declare(model.input_names, model.output_names)

    def check_inputs(self, batch: Batch, stream: str) -> None:
        lacking = [name for name in self.input_names if name not in batch]
        if lacking:
            raise ModelError(
                f"stream {stream!r}: {self} lacks its input {_listed(lacking)}; the batch and the models before it give "
                f"{_listed(batch)}"
            )

    def run(self, batch: Batch, stream: str) -> Mapping[str, Any]:
        try:
            outputs: Any = self.model.run(batch, train=False, stream=stream)
        except Exception as error:
            error.add_note(f"in the model of {self.path}")
            raise
        if not isinstance(outputs, Mapping):
            raise ModelError(f"{self}: its model gave a {type(outputs).__name__}, not a mapping of outputs")
        return cast("Mapping[str, Any]", outputs)

    def _declare(self, inputs: Any, outputs: Any) -> None:
        self.input_names, self.output_names, self.is_described = tuple(inputs), tuple(outputs), True


_CallOfMember: TypeAlias = "Callable[[int, Callable[[], None]], None]"


class _Members:
    """The members of one model, which are loaded once; `check` says what they want and give together, or raises."""

    def __init__(
        self, paths: list[Path], checkpoint: str, dataset: Any, check: Callable[[list[_Member]], _Names]
    ) -> None:
        self._all = [_Member(path, checkpoint) for path in paths]
        self._dataset, self._check = dataset, check
        self._is_loaded = False
        for member in self._all:
            member.describe()
        self._names = check(self._all) if all(member.is_described for member in self._all) else None

    @property
    def names(self) -> _Names:
        if self._names is None:
            self.load()
        assert self._names is not None
        return self._names

    def loaded(self, call: _CallOfMember = lambda _, load: load()) -> list[_Member]:
        """The members, loaded now if they were not."""
        if not self._is_loaded:
            self.load(call)
        return self._all

    def load(self, call: _CallOfMember = lambda _, load: load()) -> None:
        """Load those that are not yet, each as `call(its number, …)` does it, one after the other: the modules of a
        run are looked for in its own folders, and there is one `sys.path`."""
        for index, member in enumerate(self._all):
            if member.model is None:
                call(index, lambda member=member: member.load(self._dataset))
        self._is_loaded, self._names = True, self._check(self._all)


def _each_one(name: str, members: list[_Member], given: list[Mapping[str, Any]]) -> list[Any]:
    for member, outputs in zip(members, given, strict=True):
        if name not in outputs:
            raise ModelError(f"Ensemble: {member} declares the output {name!r} but gave only {_listed(outputs)}")
    return [outputs[name] for outputs in given]


def _refuse_training(model: object, train: bool) -> None:
    if train:
        raise ModelError(
            f"{type(model).__name__} cannot be trained, it only evaluates saved runs; set epochs = 0 in [engine], or "
            "train the runs themselves"
        )


def _refuse_state(model: object, state: Mapping[str, Any]) -> None:
    if state:
        raise ModelError(
            f"{type(model).__name__} has no weights of its own, but the state has {_listed(state)}; it is that of "
            "another model"
        )


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names)) or "nothing"


# --- threads ------------------------------------------------------------------------------------------------------


class _Job:
    """One call, in a context of its own, on its way through a thread."""

    __slots__ = ("_context", "_fn", "future")

    def __init__(self, fn: Callable[[], Any]) -> None:
        self._context, self._fn = contextvars.copy_context(), fn
        self.future: Future[Any] = Future()

    def run(self) -> None:
        try:
            result = self._context.run(self._fn)
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class _Workers:
    """Daemon threads with a queue each, which end when this object does: a hung member keeps no process alive."""

    def __init__(self, n: int) -> None:
        self.queues: list[SimpleQueue[_Job | None]] = [SimpleQueue() for _ in range(n)]
        weakref.finalize(self, _end, self.queues)
        for number, queue in enumerate(self.queues, 1):
            threading.Thread(target=_work, args=[queue], name=f"asyncloop member {number}", daemon=True).start()


def _work(queue: SimpleQueue[_Job | None]) -> None:
    while (job := queue.get()) is not None:
        job.run()
        del job  # while the thread waits for the next one, it must not keep the last one's batch alive


def _end(queues: list[SimpleQueue[_Job | None]]) -> None:
    for queue in queues:
        queue.put(None)


class _Threads:
    """Where members run: member i on thread i modulo their number, of which the first is the caller's own.

    Each calling thread has workers of its own. They are held by its thread-local storage and by nothing else (no frame
    either, which an exception could keep), so that they end with the thread: an engine's model thread does with its
    run, and nobody has to close the model.
    """

    def __init__(self, n_members: int) -> None:
        self._n_members, self._n = n_members, min(n_members, _THREADS)
        self._own = threading.local()

    def call(self, index: int, fn: Callable[[], None]) -> None:
        """Call a function on the thread of a member and wait for it."""
        job = _Job(fn)
        self._begin({index: job})
        job.future.result()

    def call_each(self, fn: Callable[[int], Any]) -> list[Any]:
        """`fn(number)` for each member on its thread, at the same time; raises the first one's error, in their order,
        when all are done."""
        jobs = {index: _Job(lambda index=index: fn(index)) for index in range(self._n_members)}
        self._begin(jobs)
        for job in jobs.values():
            job.future.exception()  # waits
        return [job.future.result() for job in jobs.values()]

    def close(self) -> None:
        self._own = threading.local()

    def _begin(self, jobs: Mapping[int, _Job]) -> None:
        """Hand out the jobs, then do those of the caller's own thread."""
        own = [job for index, job in jobs.items() if index % self._n == 0]
        if len(own) < len(jobs):
            queues = self._queues()
            for index, job in jobs.items():
                if index % self._n:
                    queues[index % self._n - 1].put(job)
        for job in own:
            job.run()

    def _queues(self) -> list[SimpleQueue[_Job | None]]:
        if not hasattr(self._own, "workers"):
            self._own.workers = _Workers(self._n - 1)
        return self._own.workers.queues
