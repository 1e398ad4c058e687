# pyright: basic, reportMissingImports=false
"""python startup.py SYSTEM: seconds until it can begin, milliseconds to the first batch, peak memory. In a fresh process.

What is printed counts from here: the start of the interpreter is the same for all and not in it. Where the program has
an event loop of its own, its import and its start belong to what comes before the first batch is asked for.
"""

import time

BEGAN = time.perf_counter()

import json
import resource
import sys
from collections.abc import Callable, Iterator

FIRST: list[float] = []
BEGINS: list[float] = []
N_BATCHES = 4


def batches() -> Iterator[dict[str, object]]:
    import numpy as np

    for index in range(N_BATCHES):
        yield {"id": np.array([index]), "x": np.zeros((1, 32))}


def first(batch: object) -> None:
    if not FIRST:
        FIRST.append(time.perf_counter())


def begins() -> None:
    BEGINS.append(time.perf_counter())


def peak_mib() -> float:
    """The peak of this process. `ru_maxrss` would not do: after a fork it begins with the parent's."""
    try:
        with open("/proc/self/status") as status:
            line = next(line for line in status if line.startswith("VmHWM"))
            return int(line.split()[1]) / 2**10
    except (OSError, StopIteration):
        return rss_mib(resource.getrusage(resource.RUSAGE_SELF))


def rss_mib(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def plain_loop() -> Callable[[], None]:
    import numpy as np  # noqa: F401

    def run() -> None:
        for batch in batches():
            first(batch)

    return run


def asyncloop(loop: str) -> Callable[[], None]:
    from asyncloop import Engine

    class Model:
        input_names = ("id", "x")
        output_names = ("loss",)

        def run(self, batch: object, *, train: bool, stream: str) -> dict[str, float]:
            first(batch)
            return {"loss": 0.5}

        def state_dict(self) -> dict[str, object]:
            return {}

        def load_state_dict(self, state: object) -> None:
            pass

    class Data:
        def train_stream(self) -> Iterator[dict[str, object]]:
            return batches()

    async def main() -> None:
        engine = Engine(Model(), Data(), epochs=1, skip_zeroth_epoch=True)
        begins()
        await engine.train()

    def run() -> None:
        import anyio

        anyio.run(main, backend_options={"use_uvloop": loop == "uvloop"})

    return run


def naive() -> Callable[[], None]:
    import asyncio

    import numpy as np  # noqa: F401

    async def main() -> None:
        begins()
        for batch in batches():
            await asyncio.to_thread(first, batch)

    return lambda: asyncio.run(main())


def spdl() -> Callable[[], None]:
    import numpy as np  # noqa: F401
    from spdl.pipeline import PipelineBuilder

    def run() -> None:
        pipeline = PipelineBuilder().add_source(batches()).add_sink(3).build(num_threads=1)
        with pipeline.auto_stop():
            for batch in pipeline:
                first(batch)

    return run


def grain() -> Callable[[], None]:
    import grain as library

    def run() -> None:
        for batch in library.MapDataset.source(list(batches())).to_iter_dataset():
            first(batch)

    return run


def dataloader(n_workers: int) -> Callable[[], None]:
    from torch.utils.data import DataLoader

    def run() -> None:
        ready: object = list(batches())
        for batch in DataLoader(ready, batch_size=None, num_workers=n_workers, collate_fn=as_it_is):  # type: ignore[arg-type]
            first(batch)

    return run


def as_it_is(batch: object) -> object:
    return batch


def torchdata() -> Callable[[], None]:
    import torchdata.nodes as nodes

    def run() -> None:
        for batch in nodes.Loader(nodes.Prefetcher(nodes.IterableWrapper(batches()), prefetch_factor=2)):
            first(batch)

    return run


def accelerate() -> Callable[[], None]:
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    def run() -> None:
        ready: object = list(batches())
        loader = DataLoader(ready, batch_size=None, collate_fn=as_it_is)  # type: ignore[arg-type]
        for batch in Accelerator(cpu=True).prepare_data_loader(loader):
            first(batch)

    return run


def ignite() -> Callable[[], None]:
    from ignite.engine import Engine

    return lambda: (Engine(lambda engine, batch: first(batch)).run(batches(), epoch_length=N_BATCHES), None)[1]


def lightning() -> Callable[[], None]:
    import logging

    import lightning.pytorch as pl
    from torch.utils.data import DataLoader

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: object, batch_idx: int) -> None:
            first(batch)

        def configure_optimizers(self) -> None:
            return None

    def run() -> None:
        ready: object = list(batches())
        loader = DataLoader(ready, batch_size=None, collate_fn=as_it_is)  # type: ignore[arg-type]
        pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(Module(), train_dataloaders=loader)

    return run


PROBES: dict[str, Callable[[], Callable[[], None]]] = {
    "plain": plain_loop,
    "asyncloop-uvloop": lambda: asyncloop("uvloop"),
    "asyncloop-asyncio": lambda: asyncloop("asyncio"),
    "naive": naive,
    "spdl": spdl,
    "grain": grain,
    "dataloader-0": lambda: dataloader(0),
    "dataloader-2": lambda: dataloader(2),
    "torchdata": torchdata,
    "accelerate": accelerate,
    "ignite": ignite,
    "lightning": lightning,
}
"""System → imports it, and returns what iterates with it."""


def main() -> None:
    run = PROBES[sys.argv[1]]()
    imported = time.perf_counter()
    run()
    began = BEGINS[0] if BEGINS else imported
    reading = {
        "import_s": began - BEGAN,
        "first_ms": (FIRST[0] - began) * 1e3,
        "peak_mib": peak_mib(),
        "child_mib": rss_mib(resource.getrusage(resource.RUSAGE_CHILDREN)),
    }
    print(json.dumps(reading))


if __name__ == "__main__":
    main()
