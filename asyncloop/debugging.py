"""Debugging: a few batches of each stream, and proof that nobody changes a batch or an output after it was made.

Arrays are shared by reference all the way, so a model that normalises its batch in place, a hook that scales what it
plots, or a producer that fills the same memory again spoils what others see, without any error. Here every array is
hashed when it appears and again when everybody has had it.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from asyncloop.errors import DataError, HookError, ModelError
from asyncloop.events import AfterEpoch, AfterEvaluation, AfterTraining, BeforeEpoch, Event
from asyncloop.hook import Hook
from asyncloop.stream import Node
from asyncloop.stream.operators import MapInline, Taken

__all__ = ["N_BATCHES", "N_EPOCHS", "BatchGuard", "few"]

N_BATCHES = 5
"""Batches of each pass."""
N_EPOCHS = 2


def few(settings: Mapping[str, Any]) -> dict[str, Any]:
    """An engine's settings for a run of a few batches."""

    def at_most(name: str, most: int, default: int | None) -> dict[str, Any]:
        value = settings.get(name)
        return {name: default if value is None else min(value, most)}

    epochs = at_most("epochs", N_EPOCHS, N_EPOCHS)
    return {
        **settings,
        **epochs,
        **at_most("steps", N_EPOCHS * N_BATCHES, None),
        **at_most("epoch_size", N_BATCHES, None),
    }


class _Produced(dict[str, Any]):
    """A batch with its number in the pass and the hash of each source when it was produced."""

    def __init__(self, batch: Mapping[str, Any], index: int) -> None:
        super().__init__(batch)
        self.index = index
        self.hashes = _hashes(batch)


@dataclass(frozen=True, slots=True)
class _Seen:
    """Something that hooks have been given, and what it was like then."""

    what: str
    values: Mapping[str, Any]
    hashes: Mapping[str, bytes]


class BatchGuard(Hook):
    """Fails the run when a source or an output was changed, naming it and who had it. Belongs last in the hooks' order.

    `watched` wraps the streams, `guard` the model. Barriers come when every hook has handled every batch so far.
    """

    def __init__(self, hooks: Sequence[Any]) -> None:
        self._names = sorted({type(hook).__name__ for hook in hooks if _takes_batches(hook)})
        self._seen: list[_Seen] = []

    def watched(self, node: Node) -> Node:
        """The first few batches of a stream, hashed where they are produced."""
        numbers = iter(range(N_BATCHES))

        def produced(batch: Any) -> Any:
            return _Produced(cast("Mapping[str, Any]", batch), next(numbers)) if isinstance(batch, Mapping) else batch

        return MapInline(Taken(node, N_BATCHES), produced)

    def guard(self, model: Any) -> Any:
        """The model with a look at its batch after each `run`: itself, or one seen through if that cannot be replaced.

        Hashing happens on the thread that calls it.
        """
        run = model.run

        async def run_async(batch: Mapping[str, Any], *, train: bool, stream: str) -> Any:
            before = self._before(batch, stream)
            return self._after(await run(batch, train=train, stream=stream), batch, before, stream)

        def run_plain(batch: Mapping[str, Any], *, train: bool, stream: str) -> Any:
            before = self._before(batch, stream)
            return self._after(run(batch, train=train, stream=stream), batch, before, stream)

        guarded = run_async if inspect.iscoroutinefunction(run) else run_plain
        try:
            model.run = guarded
        except (AttributeError, TypeError):  # __slots__, frozen, a property, or not made in Python
            return _SeenThrough(model, guarded)
        return model

    def _before(self, batch: Mapping[str, Any], stream: str) -> Mapping[str, bytes]:
        if not isinstance(batch, _Produced):  # feeds that a before_batch hook has made
            return _hashes(batch)
        for name in _changed(batch, batch.hashes):
            raise DataError(
                f"{_called(batch, stream)}: source {name!r} was changed between its producer and the step; "
                "a producer must not use a batch's memory again (copy it), and nobody may change a batch"
            )
        return batch.hashes

    def _after(self, outputs: object, batch: Mapping[str, Any], before: Mapping[str, bytes], stream: str) -> Any:
        for name in _changed(batch, before):
            raise ModelError(
                f"{_called(batch, stream)}: the model changed its source {name!r} in place; "
                "hooks get the same array: work on a copy"
            )
        called = _called(batch, stream)
        self._seen.append(_Seen(f"{called}: source", batch, before))
        if isinstance(outputs, Mapping):
            eager = {k: v for k, v in cast("Mapping[str, Any]", outputs).items() if not callable(v)}
            self._seen.append(_Seen(f"{called}: output", eager, _hashes(eager)))
        return cast(Any, outputs)

    async def before_epoch(self, event: BeforeEpoch) -> None:
        self._look(event)

    async def after_evaluation(self, event: AfterEvaluation) -> None:
        self._look(event)

    async def after_epoch(self, event: AfterEpoch) -> None:
        self._look(event)

    async def after_training(self, event: AfterTraining) -> None:
        self._look(event)

    def _look(self, event: Event) -> None:
        seen, self._seen = self._seen, []
        for each in seen:
            for name in _changed(each.values, each.hashes):
                hooks = f"a hook ({', '.join(self._names)}), or " if self._names else ""
                raise HookError(
                    f"{each.what} {name!r} was changed after its step, by {hooks}a producer or model that uses its "
                    "memory again; work on a copy"
                )


class _SeenThrough:
    """A model with another `run`; everything else is read from it and written to it."""

    __slots__ = ("_model", "run")

    def __init__(self, model: Any, run: Callable[..., Any]) -> None:
        object.__setattr__(self, "_model", model)
        object.__setattr__(self, "run", run)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_model"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(object.__getattribute__(self, "_model"), name, value)


def _called(batch: Mapping[str, Any], stream: str) -> str:
    return f"stream {stream!r}" + (f", batch {batch.index}" if isinstance(batch, _Produced) else "")


def _takes_batches(hook: Any) -> bool:
    return any(hasattr(hook, name) for name in ("after_batch", "after_batches", "before_batch", "add"))


def _changed(values: Mapping[str, Any], hashes: Mapping[str, bytes]) -> Iterable[str]:
    return [name for name, found in _hashes(values).items() if hashes.get(name, found) != found]


def _hashes(values: Mapping[str, Any]) -> dict[str, bytes]:
    return {name: _hash(value) for name, value in values.items()}


def _hash(value: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, value)
    return digest.digest()


def _feed(digest: Any, value: Any) -> None:
    """All of a value: no array, however large or deep inside, is hashed by the few numbers that its repr shows."""
    array = _array_of(value)
    if array is not None:
        whole = not array.dtype.hasobject
        digest.update(array.tobytes()) if whole else _feed(digest, array.tolist())
    elif isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        digest.update(b"%d items" % len(items))
        for key, part in items:
            digest.update(repr(key).encode())
            _feed(digest, part)
    elif isinstance(value, list | tuple):
        parts = cast("Sequence[Any]", value)
        digest.update(b"%d parts" % len(parts))
        for part in parts:
            _feed(digest, part)
    else:
        with np.printoptions(threshold=sys.maxsize, floatmode="unique"):
            digest.update(repr(value).encode(errors="surrogatepass"))


def _array_of(value: Any) -> np.ndarray[Any, Any] | None:
    """The numbers of an array, a tensor, a table of pandas; None of anything else."""
    if isinstance(value, type) or not (hasattr(value, "__array__") or hasattr(value, "detach")):
        return None
    try:
        array = _numbers_of(value.detach().cpu()) if hasattr(value, "detach") else np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # it does not want to be one
        return None
    return None if array.dtype.hasobject and array.ndim == 0 else array


def _numbers_of(tensor: Any) -> np.ndarray[Any, Any]:
    try:
        return tensor.numpy()
    except TypeError:  # bfloat16 and smaller ones, which numpy does not know and float32 holds
        return tensor.float().numpy()
