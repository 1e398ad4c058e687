"""TorchModel: a `torch.nn.Module` with losses, an optimizer and everything around them, as a model of asyncloop's."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Discriminator, Tag
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from asyncloop.batch import Batch, n_examples_of
from asyncloop.errors import ConfigError, ModelError
from asyncloop.model import Skipped
from asyncloop.nested import Nested, is_nested
from asyncloop.torch.arguments import close_to, listed, matching, of_kind
from asyncloop.torch.averaging import EMA, Average
from asyncloop.torch.building import captures, compiled, device_named, dtype_of, module_of, pretrained_of
from asyncloop.torch.lane import Lane
from asyncloop.torch.losses import LOSS_KEYS, Losses, called, looked_up
from asyncloop.torch.metrics import METRIC_KEYS, PassMetrics
from asyncloop.torch.microbatches import Part, detached, number_of, pieces, whole
from asyncloop.torch.numerics import NOTHING, Numerics, Precision, is_out_of_memory
from asyncloop.torch.parallel import Parallel, Spread, stated
from asyncloop.torch.pretrained import Pretrained, load_pretrained
from asyncloop.torch.profiling import Profile, Profiler
from asyncloop.torch.recomputing import recompute_activations
from asyncloop.torch.schedules import Schedule
from asyncloop.torch.stages import Stage, Stages
from asyncloop.torch.states import copied_into, differences, fill, refuse_different, storages_of
from asyncloop.torch.updates import OPTIMIZER_KEYS, Clip, Updates
from asyncloop.torch.world import join

__all__ = ["TorchModel"]

logger = logging.getLogger("asyncloop")

_AHEAD = 2
"""Batches on the device before their steps, when the device is not the CPU."""


_HINTS = {
    "find_unused_parameters": "parallel = { kind = 'ddp', unused = true } is for modules that leave out parameters in some step",
    "Inference tensors cannot be saved for backward": "the module keeps a tensor that it made in an evaluation, which runs in "
    "inference mode; make it where the module is made, or in a training step",
}
"""Part of what PyTorch says → what a user of TorchModel can do about it."""


def _kind_of_schedule(value: object) -> str:
    return "torch's own" if isinstance(value, Mapping) and "class" in value else "ours"


_Schedule = Annotated[
    Annotated[Schedule, Tag("ours")] | Annotated[Mapping[str, Any], Tag("torch's own")],
    Discriminator(_kind_of_schedule),
]


class TorchModel:
    """Trains `module` on its thread: forward, losses, backward, clipping, one update a step; evaluates in inference mode.

    Each argument is what a config states, or its object. A table with `class` makes one: `{ class = "torch.optim:AdamW",
    lr = 3e-4 }`. Outputs: `loss`, each loss by its name if there are several, `lr`, `grad_norm` if gradients are clipped,
    and what the module gives. Scalars come with every step; anything larger is handed to the hooks that name it in
    `variables`, and costs nothing else. Nothing waits for the device in a step.

    * `module`, `inputs`: sources passed to it in order, or a table: its argument → source.
    * `outputs`: names for what it returns, in order; a mapping brings its own names, which losses may use if they are here.
    * `loss`: a table (or several by name) with `inputs`, outputs or sources by name, and `weight`; text: that output is it.
    * `optimizer`: with `groups = [{ match = "*.bias", weight_decay = 0 }]`. Without one the model only evaluates.
    * `schedule`: `kind` (see Schedule), or a scheduler of torch's own by `class` (or the scheduler, or a function of the
      optimizer that makes one), stepped with each update.
    * `metrics`: torchmetrics by `class`, several by name; over each pass, in the epoch's data.
    * `precision`: fp32, tf32, bf16, fp16 (see Numerics). `microbatches`: parts of a batch, one after the other, for one update.
    * `clip`, `ema`, `stages`, `freeze`, `weights`: see Clip, EMA, Stage, Pretrained. `freeze`: patterns of parameters.
    * `compile`: true, or the arguments of torch.compile. `cuda_graphs`: captured as CUDA graphs, on GPUs.
    * `checkpoint_activations`: patterns of submodules whose activations are computed again in the backward pass.
    * `device`: auto, cpu, cuda, cuda:1, mps. `ahead`: batches copied to it before their steps.
    * `parallel`: how several processes share it: ddp (auto), fsdp, or a table (see Parallel).
    * `on_oom`: "error", or "skip": the step changes no weight, is counted in `out_of_memory`, and the run goes on.
    * `deterministic`, `detect_anomaly`, `channels_last`, `profile` (see Profile).

    A step of your own is one method: override `step`.
    """

    restore_fallback = "asyncloop.torch:TorchModel"
    only_begins = frozenset({"weights"})
    """Arguments that nothing depends on once a checkpoint's state is loaded, so that they are left out then."""
    may_change = frozenset({"ahead", "checkpoint_activations", "on_oom", "parallel", "profile"})

    def __init__(
        self,
        module: Annotated[Any, Nested()],
        inputs: Sequence[str] | Mapping[str, str],
        *,
        outputs: Sequence[str] = ("output",),
        loss: Annotated[Any, Nested(own=LOSS_KEYS, several=True)] = None,
        optimizer: Annotated[Any, Nested(own=OPTIMIZER_KEYS, given=1)] = None,
        schedule: Annotated[_Schedule | None, Nested(given=1)] = None,
        metrics: Annotated[Any, Nested(own=METRIC_KEYS, several=True)] = None,
        precision: Precision = "fp32",
        microbatches: int = 1,
        clip: Clip | None = None,
        ema: EMA | None = None,
        stages: Sequence[Stage] = (),
        freeze: Sequence[str] = (),
        weights: str | Pretrained | None = None,
        compile: bool | Mapping[str, Any] = False,
        cuda_graphs: bool = False,
        checkpoint_activations: Sequence[str] = (),
        channels_last: bool = False,
        deterministic: bool = False,
        detect_anomaly: bool = False,
        device: str = "auto",
        ahead: int | None = None,
        on_oom: Literal["error", "skip"] = "error",
        profile: Profile | None = None,
        parallel: Literal["auto", "ddp", "fsdp"] | Parallel = "auto",
        output_dir: str | Path | None = None,
    ) -> None:
        self.world = join()
        self.device = device_named(device)
        self._keywords = list(inputs) if isinstance(inputs, Mapping) else []
        self._sources = list(inputs.values()) if isinstance(inputs, Mapping) else listed(inputs)
        """What the module is given, in order, or by `keywords` if there are any."""
        self._outputs = listed(outputs)
        if microbatches < 1:
            raise ConfigError(f"microbatches is a number of parts, at least 1, not {microbatches}")
        if ahead is not None and ahead < 0:
            raise ConfigError(f"ahead is a number of batches, at least 0, not {ahead}")
        self._microbatches, self._on_oom = microbatches, on_oom
        self.module = module_of(module)
        if weights is not None:
            load_pretrained(self.module, pretrained_of(weights))
        self.losses = None if loss is None or isinstance(loss, str) else Losses(loss)
        self._refuse_sums()
        self._loss_output = loss if isinstance(loss, str) else "loss"
        for name in matching(freeze, dict(self.module.named_parameters()), "freeze") if freeze else ():
            self.module.get_parameter(name).requires_grad_(False)
        recompute_activations(self.module, checkpoint_activations)
        self._place(channels_last)
        if self.world is not None:
            Spread.begin_alike(self.module, *([] if self.losses is None else [self.losses]))
        self._spread = Spread(self.module, stated(parallel), self.world, self.device)
        self._refuse_alone_only(precision)
        self.metrics = None if metrics is None else PassMetrics(metrics, self.device)
        self._refuse_taken_names()
        self._warn_of_slips()
        self._numerics = Numerics(precision, self.device, deterministic=deterministic, detect_anomaly=detect_anomaly)
        self.updates = self._updates(optimizer, schedule, clip)
        self.average = None if ema is None else Average(self.module, of_kind("ema", EMA, ema))
        self._stages = self._staged(stages)
        self._active: Sequence[str] | None = None
        recorded = profile is not None and (self.world is None or self.world.rank == 0)
        self._profiler = None if not recorded else Profiler(of_kind("profile", Profile, profile), output_dir)
        self._is_bare = self._profiler is None and self._numerics.are_plain
        """Whether a step needs nothing set around it."""
        as_wanted = partial(compiled, given=compile, cuda_graphs=cuda_graphs)
        self._training_net = self._spread.wrapped(as_wanted, unused=self._stages is not None)
        self._evaluating_net = self._training_net if self.world is None else as_wanted(self.module)
        self.net = self._training_net
        """The module to call in a step: as it is, compiled, or the form of it that many processes train."""
        self._cuda_graphs = cuda_graphs or (self.device.type == "cuda" and captures(compile))
        self._kept = self._storages()
        """Where the memory of weights and buffers begins, which later steps write into."""
        self._scalars = {"loss", *([] if self.losses is None else self.losses.by_name), *self.training_output_names}
        """Outputs that are known to be scalars; used and kept up to date with on_oom = "skip" only."""
        self._trains = True
        self._modes: list[tuple[nn.Module, bool]] = []
        self.ahead = (0 if self.device.type == "cpu" else _AHEAD) if ahead is None else ahead
        self._lane = Lane(self.device, self._wanted_sources(), dtype_of(self.module), channels_last=channels_last)
        self.live = self._live()

    @property
    def input_names(self) -> Sequence[str]:
        """The sources that a batch must have: those of the module, and what losses and metrics take that it does not give."""
        wanted = (name.partition("/")[0] for name in (*self._sources, *self._looked_at()))
        given = self._given_names()
        return list(dict.fromkeys(name for name in wanted if name not in given))

    @property
    def output_names(self) -> Sequence[str]:
        parts = [] if self.losses is None else list(self.losses.by_name)
        return list(dict.fromkeys(["loss", *parts, *self.training_output_names, *self._outputs]))

    @property
    def training_output_names(self) -> Sequence[str]:
        """Those that only training steps have."""
        if self.updates is None:
            return []
        norm = ["grad_norm"] if self.updates.clip is not None and self.updates.clip.norm else []
        return ["lr", *norm, *(["out_of_memory"] if self._on_oom == "skip" else [])]

    # --- a step -------------------------------------------------------------------------------------------------

    def step(self, batch: Mapping[str, Any], *, train: bool, stream: str) -> Mapping[str, Any]:
        """From sources on the device to outputs, `loss` among them when training. Override it for a step of your own.

        Called under autocast, in training for each microbatch; backward, update and all the rest follow by themselves.
        Call `self.net`, which may be the compiled or the distributed form of `self.module`. Thread: the model's.
        """
        outputs = self.outputs_of(self.net, batch)
        if self.losses is None:
            found = {} if self._loss_output == "loss" else {"loss": looked_up(outputs, [self._loss_output], "loss")[0]}
        else:
            found = self.losses.computed({**batch, **outputs}, self._active if train else None, optional=not train)
        return {**found, **outputs}

    def outputs_of(self, net: Callable[..., Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        """What `net` gives for the model's inputs, by name. ModelError if names and results do not match."""
        result = called(net, batch, self._sources, "the module", self._keywords)
        if isinstance(result, Tensor):  # first, for it is the common kind, and slow to be asked for anything else
            parts: Sequence[Any] = (result,)
        elif isinstance(result, Mapping):
            return dict(cast("Mapping[str, Any]", result))
        elif hasattr(result, "_asdict"):
            return result._asdict()
        else:
            parts = cast("Sequence[Any]", result if isinstance(result, tuple | list) else (result,))
        if len(parts) != len(self._outputs):
            names = ", ".join(map(repr, self._outputs))
            raise ModelError(
                f"the module returned {len(parts)} values, and `outputs` names {len(self._outputs)}: {names}"
            )
        return dict(zip(self._outputs, parts, strict=True))

    @property
    def is_sharded(self) -> bool:
        """Whether this process has only its shares of the weights, and so saves and loads only those."""
        return self._spread.is_sharded

    def run(self, batch: Batch, *, train: bool, stream: str) -> Mapping[str, Any]:
        """One step: outputs, for `train=True` after one update. Thread: the model's."""
        sources: dict[str, Any] = {}
        n_before = 0 if self.updates is None else self.updates.n_updates
        try:
            sources = self._lane.take(batch)
            step = self._train if train else self._evaluate
            if self._is_bare:
                return step(sources, batch, stream)
            with self._numerics.settings(), self._profiled(train):
                return step(sources, batch, stream)
        except RuntimeError as error:
            if is_out_of_memory(error):
                told = self._told_of_memory(error, batch, sources, train, stream)
                updates = self.updates if train and self._on_oom == "skip" else None
                if (
                    updates is None or updates.n_updates != n_before
                ):  # an update that was made cannot be skipped any more
                    raise torch.OutOfMemoryError(told) from None
                logger.warning("%s; the step is skipped", told)
                return self._skipped(updates)
            if self.world is not None and self.world.is_of_others(error):
                raise self.world.gone(error) from None
            for words, hint in _HINTS.items():
                if words in str(error):
                    error.add_note(hint)
            raise
        finally:
            self._lane.used()

    def _profiled(self, train: bool) -> AbstractContextManager[Any]:
        if self._profiler is None or self.updates is None or not train:
            return NOTHING
        return self._profiler.around_step(self.updates.n_updates)

    def _train(self, sources: Mapping[str, Any], batch: Batch, stream: str) -> dict[str, Any]:
        updates = self.updates
        if updates is None:
            raise ConfigError("this TorchModel has no optimizer: it can be evaluated, but not trained")
        if not self._trains:
            self._set_mode(train=True)
        if self._cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        if self._stages is not None:
            self._active = self._stages.enter(updates.n_updates)
        rate = updates.prepare()
        gathered: list[dict[str, Any]] = []
        weight = 1.0
        if self._microbatches == 1 and self.world is None:
            outputs = whole([(1.0, self._passed(updates, sources, 1.0, stream, gathered))])
        else:
            weight = self._spread.weight_of(batch)
            outputs = self._passed_in_parts(updates, sources, batch, weight, stream, gathered)
        for name, value in updates.update().items():
            outputs[name] = number_of(value)
        if self.average is not None:
            self.average.follow(updates.n_updates)
        if self.metrics is not None:
            for values in gathered:
                self.metrics.update((stream, True), values, counts=bool(weight))
        outputs["lr"] = rate
        if self._on_oom == "skip":
            outputs["out_of_memory"] = 0.0
            self._scalars.update(name for name, value in outputs.items() if not callable(value))
        return outputs

    def _skipped(self, updates: Updates) -> Skipped:
        """Outputs of a step that ran out of memory: as many as usual, without a value."""
        rate = updates.prepare()
        updates.skip()
        values = {name: math.nan if name in self._scalars else _no_value for name in self.output_names}
        return Skipped({**values, "lr": rate, "out_of_memory": 1.0})

    def _passed_in_parts(
        self,
        updates: Updates,
        sources: Mapping[str, Any],
        batch: Batch,
        weight: float,
        stream: str,
        gathered: list[dict[str, Any]],
    ) -> dict[str, Any]:
        """Forward and backward, part by part or as one of several processes; outputs as of the whole batch."""
        cut = self._microbatches_of(sources, batch, stream)
        parts: list[Part] = []
        for number, (share, part) in enumerate(cut):
            with self._spread.gathering(last=number == len(cut) - 1):
                outputs = self._passed(updates, part, share * weight, stream, gathered if share else [])
            if share:
                parts.append((share, outputs))
        if self.losses is not None:
            self._spread.average_gradients(self.losses)
        return whole(parts)

    def _passed(
        self, updates: Updates, sources: Mapping[str, Any], share: float, stream: str, gathered: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Forward and backward of a part of the batch, by its `share` of the gradients; outputs, scalars as numbers.

        What metrics look at when the step is made is `gathered`.
        """
        outputs = self._computed(sources, train=True, stream=stream)
        updates.backward(_loss_in(outputs, share))
        if self.metrics is None and self._active is None:
            return self._told(outputs)
        outputs = {name: detached(value, self._cuda_graphs, self._kept) for name, value in outputs.items()}
        values = {**sources, **outputs}
        if self.metrics is not None:
            gathered.append(values)
        return {**self._idle_losses(values), **self._told(outputs)}

    def _evaluate(self, sources: Mapping[str, Any], batch: Batch, stream: str) -> dict[str, Any]:
        self._set_mode(train=False)
        try:
            with self._spread.evaluating():
                outputs = self._computed(sources, train=False, stream=stream)
            if self.metrics is not None:
                counts = bool(self._spread.weight_of(batch))
                self.metrics.update((stream, False), {**sources, **outputs}, counts=counts, optional=True)
        except BaseException:
            self._set_mode(train=True)
            raise
        return whole([(1.0, self._told(outputs))])

    def _computed(self, sources: Mapping[str, Any], *, train: bool, stream: str) -> Mapping[str, Any]:
        """What a step gives, on the graph."""
        if self._numerics.autocast is NOTHING:
            return self.step(sources, train=train, stream=stream)
        with self._numerics.autocast:
            return self.step(sources, train=train, stream=stream)

    def _storages(self) -> frozenset[int]:
        return storages_of(self.module, *([] if self.losses is None else [self.losses]))

    def _told(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """As they leave the step, before its update: scalars as numbers, anything larger off the graph."""
        given: dict[str, Any] = {}
        for name, value in outputs.items():
            if isinstance(value, Tensor) and value.is_cpu and not value.ndim:
                given[name] = value.item()
            else:
                given[name] = number_of(detached(value, self._cuda_graphs, self._kept))
        return given

    def _microbatches_of(self, sources: Mapping[str, Any], batch: Batch, stream: str) -> Sequence[Part]:
        """The microbatches, and each one's share of the examples."""
        if self._microbatches == 1:
            return [(1.0, sources)]
        n = n_examples_of(batch, stream, 0)
        return list(pieces(sources, n, self._microbatches, idle=self.is_sharded))  # shares are wanted by the others

    def _idle_losses(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Losses that do not count in this stage, computed for hooks that name them."""
        if self.losses is None or self._active is None:
            return {}
        return {
            name: partial(self._idle_loss, name, values) for name in self.losses.by_name if name not in self._active
        }

    def _idle_loss(self, name: str, values: Mapping[str, Any]) -> Any:
        assert self.losses is not None
        with torch.no_grad(), self._numerics.autocast:
            return number_of(self.losses.alone(name, values))

    def _told_of_memory(
        self, error: RuntimeError, batch: Batch, sources: dict[str, Any], train: bool, stream: str
    ) -> str:
        """What ran out of memory, in words; everything that the step held is let go."""
        step = f"step {self.updates.n_updates + 1}" if train and self.updates is not None else "an evaluation"
        shapes = ", ".join(f"{name} {tuple(getattr(value, 'shape', ()))}" for name, value in batch.items())
        error.__traceback__ = None  # its frames hold the activations
        sources.clear()
        if self.updates is not None:
            self.updates.forget_gradients()
        gc.collect()
        peak = ""
        if self.device.type == "cuda":
            peak = f", at most {torch.cuda.max_memory_allocated(self.device) / 2**30:.2f} GiB in use"
            torch.cuda.empty_cache()
        return (
            f"out of memory in {step} on stream {stream!r} ({shapes}{peak}): {error}; a smaller batch, more microbatches, "
            "precision bf16 or checkpoint_activations take less"
        )

    # --- around steps -------------------------------------------------------------------------------------------

    def stage(self, batch: Batch) -> Any:
        """Begin to copy a batch to the device, ahead of its step, which is told if there is no memory for it. Any thread."""
        try:
            return self._lane.stage(batch)
        except RuntimeError as error:
            if is_out_of_memory(error):
                return error
            raise

    def eval(self) -> None:
        """Be ready for inference, also by `net(…)`: modules in eval mode, the average in the place of the weights."""
        self._set_mode(train=False)

    @property
    def cannot_train(self) -> str | None:
        """Why no training step is possible, in words; None if one is."""
        if self.updates is None:
            return 'has no optimizer, so it can only be evaluated: write optimizer = { class = "torch.optim:AdamW", lr = 1e-3 }'
        has_own = type(self).step is not TorchModel.step or self._loss_output in self._outputs
        if self.losses is None and not has_own:
            told = (
                f"names the output {self._loss_output!r} as its loss" if self._loss_output != "loss" else "has no loss"
            )
            return f'{told}, and `outputs` has only {", ".join(self._outputs)}: write loss = {{ class = "torch.nn:CrossEntropyLoss" }}'
        return None

    def begin_stream(self, stream: str, *, train: bool) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # of this thread: for what a module makes itself
        self._kept = self._storages()  # a module may have made itself other buffers since
        if self.metrics is not None:
            self.metrics.begin((stream, train))

    def end_stream(self, stream: str, *, train: bool) -> Mapping[str, Any]:
        self._set_mode(train=True)
        return {} if self.metrics is None else self.metrics.result((stream, train))

    def close(self) -> None:
        """The run is over: what a profile's window has recorded so far is written."""
        if self._profiler is not None and self.updates is not None:
            self._profiler.finish(self.updates.n_updates)

    def evaluated(self, data: Mapping[str, Mapping[str, Any]]) -> None:
        """An evaluation is complete, with these data by stream: a plateau schedule takes note."""
        if self.updates is not None:
            self.updates.evaluated(data)

    def _set_mode(self, *, train: bool) -> None:
        """Be ready to train, or to evaluate: modules in eval mode, the average in the place of the weights."""
        if train == self._trains:
            return
        if train:
            for module, was_training in self._modes:
                module.training = was_training
        else:
            own = (self.module,) if self.losses is None else (self.module, self.losses)
            self._modes = [(module, module.training) for each in own for module in each.modules()]
            for each in own:
                each.eval()
        if self.average is not None:
            self.average.put_inside(not train)
        if not train:
            self._spread.share_buffers()
        self._trains = train
        self.net = self._training_net if train else self._evaluating_net

    def check_parameter(self, name: str, value: float) -> None:
        """ConfigError for a value that a parameter of `live` cannot have. Any thread."""
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{name} is a number of at least 0, not {value}")
        if name == "clip_norm" and not value:
            raise ConfigError("clip_norm is positive, not 0")
        if name == "ema_decay":
            EMA(decay=value)

    def set_parameters(self, **changes: Any) -> None:
        """Change what `live` names, from the next step on."""
        for name, value in changes.items():
            self.check_parameter(name, value)
        if self.updates is not None:
            if "lr" in changes:
                self.updates.set_rate(changes["lr"])
            if "weight_decay" in changes:
                self.updates.set_decay(changes["weight_decay"])
            if "clip_norm" in changes and self.updates.clip is not None:
                self.updates.clip = replace(self.updates.clip, norm=changes["clip_norm"])
        if "ema_decay" in changes and self.average is not None:
            self.average.decay = EMA(changes["ema_decay"]).decay

    # --- state --------------------------------------------------------------------------------------------------

    def weights(self) -> Mapping[str, Tensor]:
        """Parameters and buffers by name, live; averaged ones as the average."""
        own = dict(self.module.state_dict())
        return own if self.average is None else {**own, **self.average.weights}

    def state_dict(self) -> Mapping[str, Any]:
        """All that the next step depends on; the tensors are the live ones."""
        self._set_mode(train=True)
        state: dict[str, Any] = {"module": dict(self.module.state_dict())}
        if self.losses is not None and (own := self.losses.state_dict()):
            state["losses"] = dict(own)
        if self.updates is not None:
            state["updates"] = self.updates.state_dict()
        if self.average is not None:
            state["average"] = dict(self.average.weights)
            state["ema_decay"] = self.average.decay
        if self.metrics is not None:
            state["metrics"] = self.metrics.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; ModelError, and no change, if names or shapes differ."""
        self._set_mode(train=True)
        refuse_different(list(self._differences(state)), type(self).__name__)
        copied_into(self.module, state["module"])
        if self.losses is not None and "losses" in state:
            copied_into(self.losses, state["losses"])
        if self.updates is not None and "updates" in state:
            self.updates.load_state_dict(state["updates"])
        if self.average is not None:
            _copy(self.average.weights, state.get("average", state["module"]))
            self.average.decay = state.get("ema_decay", self.average.decay)
        if self.metrics is not None:
            self.metrics.load_state_dict(state.get("metrics", {}))

    def load_weights(self, state: Mapping[str, Any]) -> None:
        """Take over only what was learned, the average if there is one: a new run begins with it."""
        self._set_mode(train=True)
        refuse_different(
            list(differences(self.module.state_dict(), state["module"], "the module")), type(self).__name__
        )
        copied_into(self.module, {**state["module"], **state.get("average", {})})
        learned = state.get("losses", {})
        if self.losses is not None and not list(differences(self.losses.state_dict(), learned, "the losses")):
            copied_into(self.losses, learned)
        if self.average is not None:
            _copy(self.average.weights, self.module.state_dict())

    def _differences(self, state: Mapping[str, Any]) -> Iterator[str]:
        yield from differences(self.module.state_dict(), state["module"], "the module")
        if self.losses is not None:
            yield from differences(self.losses.state_dict(), state.get("losses", {}), "the losses")
        if self.average is not None and "average" in state:
            yield from differences(dict(self.average.weights), state["average"], "the average")
        if self.updates is not None and "updates" in state:
            yield from self.updates.differences(state["updates"])

    # --- building -----------------------------------------------------------------------------------------------

    def _refuse_alone_only(self, precision: Precision) -> None:
        if self.world is not None and self._on_oom == "skip":
            raise ConfigError(
                "on_oom = 'skip' would leave the other processes waiting; use 'error' with several processes"
            )
        if self.is_sharded and precision == "fp16":
            raise ConfigError("precision = 'fp16' needs whole weights; use bf16 with parallel = 'fsdp'")

    def _refuse_taken_names(self) -> None:
        """A loss or a metric may not be called like something else that a step or a pass gives."""
        losses = [] if self.losses is None or list(self.losses.by_name) == ["loss"] else list(self.losses.by_name)
        metrics = [] if self.metrics is None else self.metrics.names
        taken = {"loss", "lr", "grad_norm", "out_of_memory", *self._outputs}
        problems = [f"loss: {name!r} is the name of another output; take another" for name in losses if name in taken]
        taken.update(losses)
        problems += [f"metrics: {name!r} is the name of an output; take another" for name in metrics if name in taken]
        if problems:
            raise ConfigError(*problems)

    def _warn_of_slips(self) -> None:
        """What a loss or a metric takes and no output is called may be a source, which only the data can tell."""
        given = self._given_names()
        for name in self._looked_at():
            if name not in given and "/" not in name and get_close_matches(name, given, 1, 0.8):
                logger.warning(
                    "a loss or a metric wants %r, which is no output, so it has to be a source%s",
                    name,
                    close_to(name, given),
                )

    def _refuse_sums(self) -> None:
        """Parts of a batch are put together by the mean of their examples."""
        if self.losses is None or (self._microbatches == 1 and self.world is None):
            return
        sums = [name for name, each in self.losses.by_name.items() if getattr(each.fn, "reduction", None) == "sum"]
        if sums:
            raise ConfigError(
                f"loss: {', '.join(map(repr, sums))} is a sum over the examples, and parts of a batch are put together "
                "by their mean; use reduction = 'mean' with microbatches or several processes"
            )

    def _place(self, channels_last: bool) -> None:
        self.module.to(self.device)
        if channels_last:
            self.module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if self.losses is not None:
            self.losses.to(self.device)

    def _parameters(self) -> dict[str, nn.Parameter]:
        own = {} if self.losses is None else {f"losses.{name}": each for name, each in self.losses.named_parameters()}
        return {**dict(self.module.named_parameters()), **own}

    def _updates(self, optimizer: Any, schedule: Any, clip: Any) -> Updates | None:
        if optimizer is None:
            lonely = [name for name, each in (("schedule", schedule), ("clip", clip)) if each is not None]
            if lonely:
                raise ConfigError(f"{lonely[0]} means nothing without an optimizer")
            return None
        is_torchs = is_nested(schedule) or isinstance(schedule, LRScheduler) or callable(schedule)
        if not (is_torchs or isinstance(schedule, Schedule | None)):
            schedule = of_kind("schedule", Schedule, schedule)
        clip = None if clip is None else of_kind("clip", Clip, clip)
        given = cast(Any, schedule)
        return Updates(self._parameters(), optimizer, schedule=given, clip=clip, scaler=self._numerics.scaler)

    def _staged(self, stages: Sequence[Any]) -> Stages | None:
        if not stages:
            return None
        names = [] if self.losses is None else list(self.losses.by_name)
        trained = {} if self.updates is None else self.updates.parameters
        return Stages([of_kind(f"stages.{n}", Stage, each) for n, each in enumerate(stages)], names, trained)

    def _live(self) -> dict[str, type]:
        found: dict[str, type] = {}
        if self.updates is not None:
            found |= {"lr": float} if self.updates.has_own_rates else {}
            found |= {"weight_decay": float}
            found |= {"clip_norm": float} if self.updates.clip is not None and self.updates.clip.norm else {}
        return found | ({"ema_decay": float} if self.average is not None else {})

    def _looked_at(self) -> list[str]:
        """What losses and metrics take, outputs or sources."""
        return [*(self.losses.inputs if self.losses else ()), *(self.metrics.inputs if self.metrics else ())]

    def _given_names(self) -> set[str]:
        return {*self._outputs, "loss", *(self.losses.by_name if self.losses else ())}

    def _wanted_sources(self) -> list[str] | None:
        """The sources to have on the device; None if a step of somebody's own may look at any."""
        if type(self).step is not TorchModel.step:
            return None
        return list(dict.fromkeys(name.partition("/")[0] for name in (*self._sources, *self._looked_at())))


def _no_value() -> float:
    """What an output of a step that was skipped is, for a hook that names it."""
    return math.nan


def _loss_in(outputs: Mapping[str, Any], share: float) -> Tensor:
    loss = outputs.get("loss")
    if not isinstance(loss, Tensor):
        raise ModelError(
            f"a training step needs the output 'loss', a scalar tensor; there are {', '.join(outputs)}. "
            "Give the model a `loss`, or return one from the module or from step()"
        )
    if loss.ndim:
        raise ModelError(f"the output 'loss' has shape {tuple(loss.shape)}, not one number; take its mean")
    return loss if share == 1.0 else loss * share


@torch.no_grad()
def _copy(there: Mapping[str, Tensor], given: Mapping[str, Any]) -> None:
    for name, tensor in there.items():
        fill(tensor, given[name])
