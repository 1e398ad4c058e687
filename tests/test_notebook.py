"""Notebooks: in a real kernel a run is shown live in the cell that started it while other cells run."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from engine_parts import Arrays, Counting

import asyncloop
from asyncloop import Engine
from asyncloop.hooks import ShowProgress

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The notebook beside the digits; what kernels write elsewhere goes below it as well."""
    for name in ("digits", "notebook"):
        shutil.copytree(EXAMPLES / name, tmp_path / name, ignore=shutil.ignore_patterns("runs", "__pycache__", ".*"))
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return tmp_path / "notebook"


# --- the example ------------------------------------------------------------------------------------------------


class Watched(nbclient.NotebookClient):
    """Executes a notebook and notes which cell ran when a display was updated."""

    updated_during: list[str]

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] == "update_display_data":
            self.updated_during.append(cell.id)
        return super().process_message(msg, cell, cell_index)  # pyright: ignore[reportUnknownVariableType]


def executed(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The outputs of each cell of the example by its id, and which cells ran when a display was updated."""
    notebook = nbformat.read(folder / "train.ipynb", as_version=4)
    client = Watched(notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.updated_during = []
    asyncio.run(client.async_execute())
    return {cell.id: cell.get("outputs", []) for cell in notebook.cells}, client.updated_during


def test_the_example_trains_in_the_background_of_its_cells(folder: Path) -> None:
    outputs, updated_during = executed(folder)
    assert len(set(updated_during)) >= 2, "updates came while several cells ran"
    assert updated_during.count("epochs") > 3
    (display,) = outputs["start"]
    assert "completed: 150 epochs done" in display.data["text/html"]
    assert display.data["text/plain"].splitlines()[-1].startswith("epoch 150  train loss ")
    (handle,) = outputs["handle"]
    assert ": running, epoch " in handle.data["text/plain"]
    assert "running" in handle.data["text/html"]
    printed = "".join(output.text for output in outputs["pause"])  # in pieces, if a display is updated meanwhile
    assert re.fullmatch(r"paused after step \d+\n", printed)
    assert "reason='150 epochs done'" in outputs["result"][0].data["text/plain"]
    (record,) = (folder / "runs").glob("*/run.json")
    assert json.loads(record.read_text())["metrics"]["test"]["accuracy"] >= 0.97
    (own,) = outputs["engine"]
    assert "completed: 20 epochs done" in own.data["text/html"]


def test_the_example_is_stored_without_outputs() -> None:
    notebook = nbformat.read(EXAMPLES / "notebook" / "train.ipynb", as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


# --- cells, one after the other ---------------------------------------------------------------------------------


class Kernel:
    """A real kernel: runs one cell after the other and keeps every message."""

    def __init__(self, manager: Any, client: Any) -> None:
        self._manager, self._client = manager, client
        self.messages: list[Any] = []

    async def run(self, code: str) -> str:
        """Wait for the end of a cell; what it printed."""
        cell = self._client.execute(code)
        contents = await self._until_idle(cell)
        assert "error" not in contents, "\n".join(contents["error"][0]["traceback"])
        return "".join(content["text"] for content in contents.get("stream", []))

    async def interrupt(self, code: str) -> str:
        """Interrupt a cell once it has printed something; the name of the error that ends it."""
        cell = self._client.execute(code)
        await self._until(cell, lambda message: message["msg_type"] == "stream")
        await self._manager.interrupt_kernel()
        (error,) = (await self._until_idle(cell))["error"]
        return error["ename"]

    def of_kind(self, kind: str) -> list[Any]:
        """The contents of all messages of one kind, whichever cell they belong to."""
        return [message["content"] for message in self.messages if message["msg_type"] == kind]

    async def _until_idle(self, cell: str) -> dict[str, list[Any]]:
        await self._until(cell, lambda message: message["content"].get("execution_state") == "idle")
        contents: dict[str, list[Any]] = {}
        for message in self.messages:
            if message["parent_header"].get("msg_id") == cell:
                contents.setdefault(message["msg_type"], []).append(message["content"])
        return contents

    async def _until(self, cell: str, is_it: Callable[[Any], bool]) -> None:
        while True:
            message = await self._client.get_iopub_msg(timeout=30)
            self.messages.append(message)
            if message["parent_header"].get("msg_id") == cell and is_it(message):
                return


@asynccontextmanager
async def kernel(folder: Path) -> AsyncGenerator[Kernel]:
    from jupyter_client.manager import start_new_async_kernel

    manager, client = await start_new_async_kernel(cwd=str(folder))
    try:
        yield Kernel(manager, client)
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)


START = """
import time
import asyncloop
from asyncloop import AfterBatch, AfterTraining
live = await asyncloop.start("../digits/cfg.toml", set={"engine.epochs": 100000, "hooks": []})
print(live.state)
"""

GO_ON = """
before = live.progress.step
async for event in live.events(AfterBatch):
    if event.step > before + 100:
        break
print(live.state)
"""

WAITS = {
    "await live": "CancelledError",
    "async for event in live.events(AfterTraining): pass": "CancelledError",
    "time.sleep(30)": "KeyboardInterrupt",
}


def test_an_interrupt_ends_the_wait_of_a_cell_and_not_the_run(folder: Path) -> None:
    async def main() -> None:
        async with kernel(folder) as cells:
            assert await cells.run(START) in ("starting\n", "running\n")
            for wait, error in WAITS.items():
                assert await cells.interrupt(f"print('waiting', flush=True)\n{wait}") == error
                assert await cells.run(GO_ON) == "running\n"
            assert await cells.run("live.control.stop('enough'); print((await live).reason)") == "enough\n"
            (display,) = cells.of_kind("display_data")
            updates = cells.of_kind("update_display_data")
            assert len(updates) > 3
            assert all(update["transient"] == display["transient"] for update in updates)
            assert "stopped: enough" in updates[-1]["data"]["text/html"]
            assert updates[-1]["data"]["text/plain"].endswith("\nstopped: enough")

    asyncio.run(main())


def test_a_display_can_be_declined(folder: Path) -> None:
    async def main() -> None:
        async with kernel(folder) as cells:
            for progress in ("none", "plain"):
                options = f"set={{'engine.epochs': 1, 'hooks': []}}, progress={progress!r}"
                await cells.run(f"import asyncloop; live = await asyncloop.start('../digits/cfg.toml', {options})")
                await cells.run("_ = await live")
            assert not cells.of_kind("display_data")
            printed = "".join(content["text"] for content in cells.of_kind("stream"))
            assert printed.count("epoch 1  train loss") == 1

    asyncio.run(main())


# --- start, pretending ------------------------------------------------------------------------------------------


class Pretended:
    """As much of a notebook as a display may touch."""

    def __init__(self) -> None:
        self.kernel = object()
        self.shown: list[str] = []

    def get_ipython(self) -> Pretended:
        return self

    def display(self, bundle: dict[str, str], *, raw: bool, display_id: bool) -> Pretended:
        self.update(bundle, raw=raw)
        return self

    def update(self, bundle: dict[str, str], *, raw: bool) -> None:
        self.shown.append(without_tags(bundle["text/html"]))


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    pretended = Pretended()
    for name in ("IPython", "IPython.display"):
        monkeypatch.setitem(sys.modules, name, pretended)  # pyright: ignore[reportArgumentType]
    return pretended


def without_tags(html: str) -> str:
    """The words, with a blank where a line or a cell ends."""
    return " ".join(re.sub(r"<[^>]*>", "", re.sub(r"</(?:div|t[hd])>", " ", html)).split())


def test_the_display_is_there_when_start_returns_and_the_engine_does_not_keep_it(notebook: Pretended) -> None:
    async def main() -> None:
        engine = Engine(Counting(), Arrays(), epochs=2)
        live = await asyncloop.start(engine=engine)
        assert notebook.shown[0] == f"run {live.id} · ● starting · 00:00 epoch 0/2 · step 0"
        await live
        assert notebook.shown[-1].startswith(f"run {live.id} · ● completed: 2 epochs done · ")
        assert engine.bus.hooks == []

    asyncio.run(main())


def test_the_runs_own_show_progress_is_the_display(notebook: Pretended) -> None:
    async def main() -> None:
        for mode in ("none", "auto"):
            assert not notebook.shown
            live = await asyncloop.start(engine=Engine(Counting(), Arrays(), [ShowProgress(mode)], epochs=1))
            assert len(live.engine.bus.hooks) == 1
            await live

    asyncio.run(main())
    assert ["starting" in shown for shown in notebook.shown].count(True) == 1


def test_a_run_that_fails_before_it_begins_is_shown_as_failed(notebook: Pretended) -> None:
    async def main() -> None:
        live = await asyncloop.start(engine=Engine(Counting(), object(), epochs=1))
        with pytest.raises(asyncloop.ConfigError):
            await live

    asyncio.run(main())
    assert "● starting" in notebook.shown[0]
    assert "● failed: " in notebook.shown[-1]


def test_outside_of_a_notebook_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        live = await asyncloop.start(engine=Engine(Counting(), Arrays(), epochs=1))
        assert live.engine.bus.hooks == []
        await live

    asyncio.run(main())
    assert capsys.readouterr() == ("", "")


# --- the handle -------------------------------------------------------------------------------------------------


def test_a_handle_reads_well_as_text_and_in_a_notebook(tmp_path: Path) -> None:
    async def main() -> None:
        engine = Engine(Counting(), Arrays(), epochs=2, extra_streams=["valid"])
        async with asyncloop.open_run(engine=engine, output_dir=tmp_path / "a<b") as live:
            await live
        assert repr(live) == f"<Run {live.id}: completed, epoch 2/2, step 26, {tmp_path}/a<b>"
        text = without_tags(live._repr_html_())  # pyright: ignore[reportPrivateUsage]
        head = f"run {live.id} · ● completed: 2 epochs done · epoch 2/2 · step 26 {tmp_path}/a&lt;b loss "
        assert text.startswith(head)
        assert "valid" in text

    asyncio.run(main())
