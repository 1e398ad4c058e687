"""Checkpoints: complete or invisible, kept by claims, read back exactly, and of one step."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from engine_parts import Arrays, Counting, Keeping

from asyncloop import (
    AfterBatch,
    CheckpointError,
    Engine,
    Hook,
    HookError,
    ModelError,
    NonFiniteError,
    StorageError,
    Stream,
)
from asyncloop.blame import code_of
from asyncloop.checkpoint import Checkpoints
from asyncloop.control import Claim
from asyncloop.hooks import SaveEvery
from asyncloop.states import copy_state, nonfinite_leaf
from asyncloop.storage import sealed, write_atomically

STATE: dict[str, Any] = {
    "weights": {"w": np.arange(6.0).reshape(2, 3), "b": np.zeros(()), "half": np.ones(3, np.float16)},
    "odd": {"complex": np.array([1 + 2j]), "text": np.array(["a", "bc"]), "empty": np.zeros((0, 4))},
    "rng": {"state": 2**127 + 5, "name": "PCG64", "none": None, "nan": float("nan"), "flag": True},
    "slots": {0: [1, 2.5, np.arange(3)], 1: []},
    "alike": {"a": {"b": np.zeros(2)}, "a/b": np.ones(3), 7: np.zeros(1), "7": np.ones(1)},
}
EMPTY: dict[str, Any] = {"model": {}, "hooks": {}}


def test_a_state_comes_back_exactly(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    parts = {"model": copy_state(STATE), "hooks": {"hook": {"best": 0.5, "arrays": [np.ones(2)]}}}
    checkpoints.write(7, parts, {"epoch": 1}, [Claim()])
    saved = checkpoints.read()
    assert saved.step == 7
    np.testing.assert_equal(saved.model, copy_state(STATE))
    assert saved.model["odd"]["text"].dtype == np.dtype("<U2")
    np.testing.assert_equal(saved.hooks, {"hook": {"best": 0.5, "arrays": [np.ones(2)]}})
    assert saved.engine == {"epoch": 1}


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Checkpoints(tmp_path / name).write(1, {"model": copy_state(STATE), "hooks": {}}, {}, [])
    for file in (tmp_path / "one" / "step-00000001").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / "step-00000001" / file.name).read_bytes()


def test_what_was_written_is_freed_at_once(tmp_path: Path) -> None:
    state = copy_state({"w": np.zeros(1000), "more": [{"deep": np.ones(3)}]})
    freed = weakref.ref(state["w"])
    gc.disable()
    try:
        Checkpoints(tmp_path).write(1, {"model": state, "hooks": {}}, {}, [])
        del state
        assert freed() is None
    finally:
        gc.enable()


def test_a_copy_is_out_of_reach_of_later_updates() -> None:
    weights = np.zeros(3)
    copy = copy_state({"w": weights, "more": [weights]})
    weights += 1
    assert copy["w"].sum() == copy["more"][0].sum() == 0


def test_what_cannot_be_saved_is_named() -> None:
    with pytest.raises(CheckpointError, match="a state_dict holds a object"):
        copy_state({"x": object()})


def test_ints_of_any_size_and_what_numpy_has_of_its_own_come_back(tmp_path: Path) -> None:
    sizes = [2**2047, 10**5000, -(7**9999)]
    own = [np.complex128(1 + 2j), np.datetime64("2024-02-03T04:05:06.000000007"), np.bytes_(b"a")]
    state = {
        "sizes": sizes,
        10**5000: {"w": np.ones(2)},
        np.int64(3): own,
        "__metadata__": np.zeros(1),
        "\ud800": np.ones(1),
    }
    Checkpoints(tmp_path).write(1, {"model": copy_state(state), "hooks": {}}, {}, [])
    found = Checkpoints(tmp_path).read().model
    assert found["sizes"] == sizes
    assert found[3] == own
    assert [type(each) for each in found[3]] == [type(each) for each in own]
    for name in (10**5000, "__metadata__", "\ud800"):
        np.testing.assert_equal(found[name], state[name])


ITSELF: dict[str, Any] = {}
ITSELF["again"] = [ITSELF]
UNSAVABLE = [
    ({"seen": {1}}, r"a set \(\{1\}\) at 'at/seen'"),
    ({"deep": [{(0, 1): 1}]}, r"a mapping with the key \(0, 1\), a tuple at 'at/deep/0'"),
    ({"deep": {b"x": 1}}, "a mapping with the key b'x', a bytes at 'at/deep'"),
    ({"odd": np.array([{}], object)}, "Python objects at 'at/odd'|a ndarray .* at 'at/odd'"),
]


@pytest.mark.parametrize(("state", "told"), UNSAVABLE)
def test_a_state_that_could_not_be_read_again_is_refused_with_its_path_and_nothing_is_left(
    tmp_path: Path, state: Any, told: str
) -> None:
    with pytest.raises(CheckpointError, match=told):
        copy_state({"at": state})
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(1, EMPTY, {}, [Claim("all")])
    with pytest.raises(CheckpointError, match=told):
        checkpoints.write(2, {"model": {"at": state}, "hooks": {}}, {}, [Claim("all")])
    assert sorted(each.name for each in tmp_path.iterdir()) == ["claims.json", "latest", "step-00000001"]


def test_a_state_that_holds_itself_is_refused() -> None:
    with pytest.raises(CheckpointError, match="nested deeper than 100 levels"):
        copy_state(ITSELF)


def test_nothing_is_left_of_a_checkpoint_whatever_was_raised(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        Checkpoints(tmp_path).write(1, EMPTY, {"of": object()}, [])
    assert not list(tmp_path.iterdir())


def test_claims_decide_what_stays(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in range(1, 7):
        claims = [Claim("every", keep=2)]
        if step == 2:
            claims.append(Claim("best", keep=1, pointer="best"))
        if step == 3:
            claims.append(Claim("pinned"))
        checkpoints.write(step, EMPTY, {}, claims)
    assert checkpoints.names() == [f"step-{step:08d}" for step in (2, 3, 5, 6)]
    assert checkpoints.find("best").name == "step-00000002"
    assert checkpoints.find().name == checkpoints.find("6").name == "step-00000006"
    again = Checkpoints(tmp_path)
    again.write(7, EMPTY, {}, [Claim("every", keep=2)])
    assert again.names() == [f"step-{step:08d}" for step in (2, 3, 6, 7)]


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damage_is_always_noticed(tmp_path: Path, file: str, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.write(1, {"model": copy_state(STATE), "hooks": {}}, {}, []) / file
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        content[len(content) // 2] ^= 0x20
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    with pytest.raises(CheckpointError):
        checkpoints.read()


def test_no_checkpoint_is_named_with_what_there_is(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(3, EMPTY, {}, [])
    with pytest.raises(CheckpointError, match=r"no checkpoint 'step-00000004' .*there are: latest, step-00000003"):
        checkpoints.read("4")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "no checkpoint ''"),
        ("claims.json", "no checkpoint 'claims.json'"),
        ("..", r"no checkpoint '\.\.'"),
        ("²", "no checkpoint '²'"),
        ("/elsewhere/checkpoints/step-00000003", "is not a checkpoint in"),
        ("../other/step-00000003", "is not a checkpoint in"),
    ],
)
def test_only_a_checkpoint_of_its_own_is_read(tmp_path: Path, name: str, told: str) -> None:
    for folder in ("own", "other"):
        Checkpoints(tmp_path / folder).write(3, EMPTY, {}, [])
    with pytest.raises(CheckpointError, match=told):
        Checkpoints(tmp_path / "own").read(name)
    assert Checkpoints(tmp_path / "own").read(str(tmp_path / "own" / "step-00000003")).step == 3


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"../other/step-00000001", None])
def test_a_damaged_latest_is_told_and_the_newest_is_taken(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.write(step, EMPTY, {}, [Claim("all")])
    if content is None:
        (tmp_path / "latest").unlink()
    else:
        (tmp_path / "latest").write_bytes(content)
    with pytest.raises(CheckpointError, match="latest"):
        checkpoints.read_newest(strict=True)
    found = checkpoints.read_newest()
    assert found is not None
    assert found.step == 2
    assert "latest" in caplog.text


def test_a_flipped_digit_of_latest_is_told_and_the_newest_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3):
        best = [Claim("best", keep=1, pointer="best")]
        Checkpoints(tmp_path).write(step, EMPTY, {}, [Claim("last", keep=2), *best])
    (tmp_path / "latest").write_text("step-00000002\n")
    checkpoints = Checkpoints(tmp_path)
    checkpoints.clean()
    assert checkpoints.names() == ["step-00000002", "step-00000003"]
    told = "`latest` names step-00000002, but the newest that was saved or gone back to is step-00000003"
    with pytest.raises(CheckpointError, match=told):
        checkpoints.read_newest(strict=True)
    found = checkpoints.read_newest()
    assert found is not None
    assert found.step == 3
    assert f"{told} (--from chooses); going on from step-00000003" in caplog.text
    checkpoints.refuse_given_up("step-00000003")
    checkpoints.go_back("step-00000003")
    assert checkpoints.pointers() == {"best": "step-00000003", "latest": "step-00000003"}


@pytest.mark.parametrize("flipped", ["step-00000003", "step-00000001"])
def test_a_flipped_digit_of_latest_brings_nothing_back_that_was_given_up(tmp_path: Path, flipped: str) -> None:
    for step in (1, 2, 3):
        Checkpoints(tmp_path).write(step, EMPTY, {}, [Claim("all")])
    Checkpoints(tmp_path).go_back("step-00000002")
    (tmp_path / "latest").write_text(f"{flipped}\n")
    found = Checkpoints(tmp_path).read_newest()
    assert found is not None
    assert found.step == 2
    with pytest.raises(CheckpointError, match="step-00000003 was given up"):
        Checkpoints(tmp_path).refuse_given_up("step-00000003")


class Killed(BaseException):
    pass


@contextmanager
def killed_at(name: str) -> Iterator[None]:
    """The process is killed when it would put this small file in its place."""

    def write(path: Path, content: bytes) -> None:
        if path.name == name:
            raise Killed
        write_atomically(path, content)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr("asyncloop.checkpoint.write_atomically", write)
        yield


@pytest.mark.parametrize("at", ["claims.json", "latest", "best"])
def test_a_run_killed_while_it_goes_back_stands_before_or_behind_it(tmp_path: Path, at: str) -> None:
    for step in (1, 2, 3):
        best = [Claim("best", keep=2, pointer="best")] if step != 2 else []
        Checkpoints(tmp_path).write(step, EMPTY, {}, [Claim("last", keep=3), *best])

    with killed_at(at):
        Checkpoints(tmp_path).go_back("step-00000002")
    again = Checkpoints(tmp_path)
    again.clean()
    newest = again.read_newest()
    assert newest is not None
    assert newest.step == (3 if at == "claims.json" else 2)
    again.go_back(newest.path.name)
    best = 3 if at == "claims.json" else 1
    assert again.pointers() == {"best": f"step-{best:08d}", "latest": f"step-{newest.step:08d}"}


@pytest.mark.parametrize("content", ["[]", "null", "3", "[" * 100_000, '{"a":' * 100_000])
def test_a_manifest_that_is_no_object_is_a_damaged_one(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        path = Checkpoints(tmp_path).write(step, EMPTY, {}, [Claim("all")])
    (path / "manifest.json").write_text(content)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.clean()
    found = checkpoints.read_newest()
    assert found is not None
    assert found.step == 1
    assert "step-00000002 is damaged" in caplog.text
    assert checkpoints.fingerprint("step-00000002") is None
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoints.read_newest(strict=True)


def test_a_checkpoint_from_before_the_claims_named_the_newest_is_gone_on_from(tmp_path: Path) -> None:
    for step in (1, 2):
        path = Checkpoints(tmp_path).write(step, EMPTY, {"epoch": 1}, [Claim("all")])
    claims = json.loads((tmp_path / "claims.json").read_text())["claims"]
    (tmp_path / "claims.json").write_bytes(sealed({"claims": claims}))
    manifest = json.loads((path / "manifest.json").read_text())
    for name in ("epoch", "cursors", "hooks", "rngs"):
        del manifest[name]
    (path / "manifest.json").write_bytes(sealed(manifest))
    found = Checkpoints(tmp_path).read_newest(strict=True)
    assert found is not None
    assert (found.step, found.engine) == (2, {"epoch": 1})
    Checkpoints(tmp_path).go_back("step-00000001")
    found = Checkpoints(tmp_path).read_newest(strict=True)
    assert found is not None
    assert found.step == 1


def test_a_newest_checkpoint_that_has_gone_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        path = checkpoints.write(step, EMPTY, {}, [Claim("all")])
    (path / "manifest.json").unlink()
    found = checkpoints.read_newest()
    assert found is not None
    assert found.step == 1
    assert "`latest` names step-00000002, which is not there or not complete; going back" in caplog.text
    shutil.rmtree(tmp_path / "step-00000001")
    with pytest.raises(CheckpointError, match="step-00000002"):  # not "there is none yet": then all would begin again
        checkpoints.read_newest()


@pytest.mark.parametrize(
    "content", ["[]", "null", "3", "{", '{"x": "step-00000002"}', '{"claims": {"all": []}, "sha256": "0"}']
)
def test_damaged_claims_cost_no_checkpoint(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2):
        Checkpoints(tmp_path).write(step, EMPTY, {}, [Claim("all")])
    (tmp_path / "claims.json").write_text(content)
    Checkpoints(tmp_path).write(3, EMPTY, {}, [Claim("last", keep=1)])
    assert "claims.json is damaged; every checkpoint that is there is kept" in caplog.text
    assert Checkpoints(tmp_path).names() == [f"step-{step:08d}" for step in (1, 2, 3)]


@pytest.mark.parametrize("at", ["claims.json", "latest", "best"])
def test_a_writer_killed_while_it_settles_costs_no_best_one(tmp_path: Path, at: str) -> None:
    def write(step: int, *, is_best: bool) -> None:
        best = [Claim("best", keep=1, pointer="best")] if is_best else []
        Checkpoints(tmp_path).write(step, EMPTY, {}, [Claim("last", keep=1), *best])

    write(1, is_best=True)
    write(2, is_best=False)
    with killed_at(at):
        write(3, is_best=True)
    best = "step-00000001" if at == "claims.json" else "step-00000003"  # behind the claims the rest is made up for
    again = Checkpoints(tmp_path)
    again.clean()
    newest = again.read_newest()
    assert newest is not None
    assert newest.step == (2 if at == "claims.json" else 3)
    again.go_back(newest.path.name)
    write(4, is_best=False)
    assert again.pointers() == {"best": best, "latest": "step-00000004"}
    assert again.names() == [best, "step-00000004"]


@pytest.mark.parametrize(("keep", "before"), [(2, "step-00000001"), (1, None)])
def test_what_is_gone_back_from_is_nobodys_any_more(tmp_path: Path, keep: int, before: str | None) -> None:
    for step in (1, 2, 3):
        best = [Claim("best", keep=keep, pointer="best")] if step != 2 else []
        Checkpoints(tmp_path).write(step, EMPTY, {}, [Claim("last", keep=2), *best])
    again = Checkpoints(tmp_path)
    for _ in range(2):
        again.go_back("step-00000002")
        again.clean()
        assert (again.find().name, again.pointers().get("best")) == ("step-00000002", before)
    with pytest.raises(CheckpointError, match="step-00000003 was given up when the run went back to step-00000002"):
        again.refuse_given_up("step-00000003")
    Checkpoints(tmp_path).write(4, EMPTY, {}, [Claim("last", keep=2)])
    assert again.names() == [*([before] if before else []), "step-00000002", "step-00000004"]


def test_names_grow_longer_after_a_hundred_million_steps(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (99_999_999, 100_000_000):
        checkpoints.write(step, EMPTY, {}, [Claim("all")])
    assert checkpoints.names() == ["step-99999999", "step-100000000"]


def test_a_run_directory_that_has_gone_is_not_made_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    checkpoints = Checkpoints(run / "checkpoints")
    checkpoints.write(1, EMPTY, {}, [])
    run.rename(tmp_path / "moved")
    with pytest.raises(StorageError, match="No such file or directory; the directory has vanished"):
        checkpoints.write(2, EMPTY, {}, [])
    assert not run.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("call", ["open", "fsync", "rename", "mkdir"])
def test_a_disk_that_fails_leaves_the_checkpoint_before_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(1, {"model": {"w": np.ones(2)}, "hooks": {}}, {}, [Claim("e", keep=1)])

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        target = {"open": "builtins.open", "fsync": "os.fsync", "rename": "os.rename", "mkdir": "pathlib.Path.mkdir"}[
            call
        ]
        patch.setattr(target, fail)
        with pytest.raises(StorageError, match=rf"step-00000002: {os.strerror(number)}; ") as caught:
            checkpoints.write(2, {"model": {"w": np.ones(2)}, "hooks": {}}, {}, [Claim("e", keep=1)])
    assert caught.value.exit_code == 4
    assert checkpoints.read().step == 1
    checkpoints.write(2, {"model": {"w": np.ones(2)}, "hooks": {}}, {}, [Claim("e", keep=1)])
    assert checkpoints.names() == ["step-00000002"]
    assert not list(tmp_path.glob(".tmp-*"))


class Stateful(Keeping):
    """A slow hook whose state is how many batches it has handled."""

    async def after_batch(self, event: AfterBatch) -> None:
        import anyio

        await anyio.sleep(0.001)
        self.seen.append(("after_batch", event))

    def state_dict(self) -> dict[str, int]:
        return {"n": self.count("after_batch")}


class Saves(Hook):
    lockstep, every = True, "5 steps"

    async def after_batch(self, event: AfterBatch) -> None:
        if event.train:
            event.control.checkpoint(Claim("saves"))


@pytest.mark.anyio
async def test_a_checkpoint_holds_model_position_and_every_hooks_state_of_one_step(tmp_path: Path) -> None:
    engine = Engine(
        Counting(), Arrays(13), [Stateful(), Saves()], epochs=2, skip_zeroth_epoch=True, output_dir=tmp_path
    )
    await engine.train()
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    steps = [5, 10, 15, 20, 25, 26]
    assert checkpoints.names() == [f"step-{step:08d}" for step in steps]
    for step in steps:
        saved = checkpoints.read(str(step))
        batches = [i % 13 for i in range(step)]
        assert saved.model["total"][0] == sum(batches) * 4
        assert saved.hooks == {"Stateful": {"n": step}}
        position = saved.engine["positions"]["train"]
        expected = (3, 0) if step == 26 else (step // 13 + 1, step % 13)
        assert (position["pass"], position["index"]) == expected


class Remembering(Hook):
    """Its state is the very list that it goes on filling."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    async def after_batch(self, event: AfterBatch) -> None:
        self.seen.append(event.step)

    def state_dict(self) -> dict[str, list[int]]:
        return {"seen": self.seen}


@pytest.mark.anyio
async def test_a_hooks_state_is_out_of_its_reach_while_a_slower_hook_is_waited_for(tmp_path: Path) -> None:
    quick = Remembering()

    class Slow(Hook):
        async def after_batch(self, event: AfterBatch) -> None:
            while event.step == 5 and len(quick.seen) < 10:
                await anyio.lowlevel.checkpoint()

    hooks = [quick, Slow(), SaveEvery("5 steps")]
    await Engine(Counting(), Arrays(10), hooks, epochs=1, skip_zeroth_epoch=True, output_dir=tmp_path).train()
    saved = Checkpoints(tmp_path / "checkpoints").read("5")
    assert saved.hooks["Remembering"] == {"seen": [1, 2, 3, 4, 5]}


class Unsavable(Counting):
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seen": {1}}


class UnsavableHook(Hook):
    def state_dict(self) -> dict[str, Any]:
        return {"seen": {(0, 1): 2}}


@pytest.mark.anyio
async def test_a_model_or_hook_whose_state_cannot_be_saved_is_named_and_the_users_fault(tmp_path: Path) -> None:
    engine = Engine(Unsavable(), Arrays(5), epochs=1, skip_zeroth_epoch=True, output_dir=tmp_path / "one")
    with pytest.raises(ModelError, match=r"the model: a state_dict holds a set \(\{1\}\) at 'seen'") as told:
        await engine.train()
    assert code_of(told.value) == 3
    hooks = [UnsavableHook()]
    engine = Engine(Counting(), Arrays(5), hooks, epochs=1, skip_zeroth_epoch=True, output_dir=tmp_path / "two")
    with pytest.raises(HookError, match=r"hook UnsavableHook: .* the key \(0, 1\), a tuple at 'seen'") as told:
        await engine.train()
    assert code_of(told.value) == 3


@pytest.mark.anyio
async def test_a_step_at_the_end_of_an_epoch_is_saved_once_after_its_evaluation(tmp_path: Path) -> None:
    hook = Keeping()
    engine = Engine(
        Counting(),
        Arrays(5),
        [Saves(), hook],
        epochs=2,
        extra_streams=["valid"],
        skip_zeroth_epoch=True,
        output_dir=tmp_path,
    )
    await engine.train()
    assert [event.step for event in hook.of("checkpoint_saved")] == [5, 10]
    names = [name for name, event in hook.seen if name in ("after_epoch", "checkpoint_saved", "after_training")]
    assert names.index("checkpoint_saved") > names.index("after_epoch")
    assert names[-1] == "after_training"


@pytest.mark.anyio
async def test_training_goes_on_while_a_slow_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Checkpoints.write
    during: list[int] = []
    model = Counting(lambda n, train: time.sleep(0.001))

    def slow(self: Checkpoints, *args: Any) -> Path:
        before = model.n_runs
        time.sleep(0.05)
        during.append(model.n_runs - before)
        return write(self, *args)

    monkeypatch.setattr(Checkpoints, "write", slow)
    engine = Engine(model, Arrays(100), [Saves()], epochs=1, skip_zeroth_epoch=True, output_dir=tmp_path)
    engine.bus.hooks[0][0].every = "50 steps"
    await engine.train()
    assert during[0] > 5


@pytest.mark.anyio
async def test_a_failing_save_fails_the_run_and_is_never_reported_as_saved(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    hook = Keeping()
    engine = Engine(Counting(), Arrays(5), [Saves(), hook], epochs=2, skip_zeroth_epoch=True, output_dir=tmp_path)
    with pytest.raises(StorageError, match="cannot write the checkpoint"):
        await engine.train()
    assert hook.count("checkpoint_saved") == 0
    assert hook.count("after_training") == 1


@pytest.mark.anyio
async def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    model = Counting()
    model.total[:] = np.nan
    with pytest.raises(NonFiniteError, match="the weight 'total' is not finite after step 5"):
        await Engine(model, Arrays(5), epochs=1, skip_zeroth_epoch=True, output_dir=tmp_path).train()
    assert not list((tmp_path / "checkpoints").glob("step-*"))


@pytest.mark.parametrize(
    ("state", "leaf"),
    [
        ({"layers": [np.ones(2), np.array([np.nan])]}, "layers/1"),
        ({"layers": ({"w": [np.array([np.inf])]},)}, "layers/0/w/0"),
        ({"w": [0.5, float("nan")]}, "w/1"),
        ({"w": np.ones(2), "clip": float("inf"), "best": [-float("inf")], "n": 3, "name": "nan"}, None),
    ],
)
def test_weights_are_looked_at_wherever_they_are_and_bounds_may_be_infinite(state: Any, leaf: str | None) -> None:
    assert nonfinite_leaf(state) == leaf


@pytest.mark.anyio
async def test_weights_in_a_list_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    class Layers(Counting):
        def state_dict(self) -> dict[str, Any]:
            return {"layers": [self.total * np.nan]}

    with pytest.raises(NonFiniteError, match="the weight 'layers/0' is not finite after step 5"):
        await Engine(Layers(), Arrays(5), epochs=1, skip_zeroth_epoch=True, output_dir=tmp_path).train()
    assert not list((tmp_path / "checkpoints").glob("step-*"))


@pytest.mark.anyio
async def test_a_failed_producer_still_saves_and_a_failed_model_leaves_the_last_good_one(tmp_path: Path) -> None:
    def bad() -> Any:
        yield {"x": np.ones(2)}
        raise ValueError("data")

    def fail(n: int, train: bool) -> None:
        if n == 7:
            raise ValueError("model")

    class Data(Arrays):
        train_stream = staticmethod(bad)  # type: ignore[assignment]

    with pytest.raises(ValueError, match="data"):
        await Engine(Counting(), Data(), epochs=1, skip_zeroth_epoch=True, output_dir=tmp_path / "one").train()
    assert (tmp_path / "one/checkpoints/latest").read_text() == "step-00000001\n"
    with pytest.raises(ValueError, match="model"):
        await Engine(
            Counting(fail), Arrays(), [Saves()], epochs=1, skip_zeroth_epoch=True, output_dir=tmp_path / "two"
        ).train()
    assert (tmp_path / "two/checkpoints/latest").read_text() == "step-00000005\n"


def test_the_manifest_is_plain_json_with_a_format_version(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path).write(1, {"model": copy_state(STATE), "hooks": {}}, {"epoch": 1}, [])
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert set(manifest["files"]) == {"state.json", "model.safetensors"}


@pytest.mark.anyio
async def test_the_manifest_says_at_a_glance_what_the_checkpoint_holds(tmp_path: Path) -> None:
    class Data(Arrays):
        def train_stream(self) -> Any:  # type: ignore[override]
            return Stream.range(40, shuffle=True).batch(4).map(lambda x: {"x": x}, worker="inline")

    hooks = [Remembering(), Stateful()]
    engine = Engine(Counting(), Data(), hooks, steps=13, skip_zeroth_epoch=True, own_rng=True, output_dir=tmp_path)
    await engine.train()
    saved = Checkpoints(tmp_path / "checkpoints").read()
    manifest = json.loads((saved.path / "manifest.json").read_text())
    assert (manifest["step"], manifest["epoch"]) == (13, saved.engine["epoch"])
    assert manifest["cursors"] == {"train": saved.engine["positions"]["train"]["cursor"]}
    assert manifest["hooks"] == ["Remembering", "Stateful"]
    assert set(manifest["rngs"]) >= {"numpy", "python"}
