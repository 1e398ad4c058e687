"""Checkpoints on disk: complete or invisible, byte-deterministic, read without running any code.

    checkpoints/step-00000500/   manifest.json  state.json  model.safetensors  hooks.safetensors (if hooks keep arrays)
    checkpoints/latest           a text file naming a directory; likewise `best` and other pointers
    checkpoints/claims.json      who still wants which checkpoint, and which is the newest

A checkpoint is written aside (`.tmp-…`), every file and the directory synced, the manifest with the SHA-256 of every
file last, then renamed, then the parent synced. Only then the pointers move and what nobody claims is removed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError

from asyncloop.control import Claim
from asyncloop.errors import CheckpointError, StorageError
from asyncloop.shards import ShardedArray, read_shards, shard_file, shards_as_safetensors, split
from asyncloop.storage import (
    clear_away,
    content_of,
    entries_of,
    is_dir,
    is_file,
    is_there,
    json_bytes,
    read_verified,
    sealed,
    storage_error,
    storage_errors,
    sync_directory,
    verify,
    write_atomically,
    write_synced,
)
from asyncloop.trees import Buffer, decoded, encoded, read_safetensors, safetensors
from asyncloop.world import World

__all__ = ["FORMAT", "Checkpoints", "Parts", "Saved", "load_weights"]

logger = logging.getLogger("asyncloop")

FORMAT = 1

_NAME = re.compile(r"step-\d{8,}", re.ASCII)

_DAMAGE = (
    ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError, SafetensorError
)  # fmt: skip
"""What reading raises where something else stands than was written."""

Parts = Mapping[str, Any]
"""Name of a part of a checkpoint → its state."""


def load_weights(model: Any, saved: Saved) -> None:
    """Give a model the state of a checkpoint. Raises what its `load_state_dict` raises. Thread: the model's."""
    try:
        model.load_state_dict(saved.model)
    except Exception as error:
        error.add_note(f"loading the weights of {saved.path}")
        raise


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint as read back: the model's state, the hooks' states by name, and the engine's own record."""

    path: Path
    step: int
    model: Mapping[str, Any]
    hooks: Mapping[str, Any]
    epoch: Mapping[str, Any]
    """The epoch under way, as `EpochRecord` gives it; empty if there was none."""
    engine: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one run directory. Every method blocks: call it in a thread that is not the event loop's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with storage_errors("look into", directory.parent):
            self._run_was_there = is_dir(directory.parent)
        self._claims: dict[str, list[str]] | None = None
        """Owner → the checkpoints that it still wants; read when the first of them is needed."""

    def write(
        self,
        step: int,
        parts: Parts,
        engine: Mapping[str, Any],
        claims: Iterable[Claim],
        world: World | None = None,
    ) -> Path:
        """Write one complete checkpoint, move the pointers, remove what nobody claims any more; its directory.

        `parts` are copies (`copy_state`) of the states of `model`, `hooks` and `epoch`. With a `world` its other
        processes call `write_shards` meanwhile. Raises StorageError; the checkpoints before stay untouched then, and
        nothing is left of the new one, whatever was raised.
        """
        name = f"step-{step:08d}"
        target = self.directory / name
        try:
            self._make_directory()
            self._claims = self._read_claims()  # of those before this one
            claims = list(claims)
            self._write_new(target, step, parts, engine, claims, world)
            self._settle(name, claims)
        except Exception as error:
            clear_away(self.directory / f".tmp-{name}")  # give the space back
            told = _in_words(error, target)
            if told is error:
                raise
            raise told from error
        return target

    def write_shards(self, step: int, model: Any, world: World) -> None:
        """Write this process's shards of the model's state, for the first process to take into its checkpoint.

        Raises StorageError, which the first process hears of, too.
        """
        own = self.directory / f".tmp-step-{step:08d}-{world.rank}"
        said: dict[str, Any] = {"failed": "it was interrupted"}
        try:
            self._make_directory()
            clear_away(own)
            own.mkdir()
            _, shards = split(encoded(model)[1])
            name = shard_file("model", world.rank, world.size)
            said = {"file": name, "entry": write_synced(own / name, *shards_as_safetensors(shards)), "at": str(own)}
        except Exception as error:
            told = _in_words(error, own)
            said = {"failed": str(told)}
            clear_away(own)
            if told is error:
                raise
            raise told from error
        finally:
            world.gather_beside(said)

    def read(self, name: str = "latest") -> Saved:
        """Read a checkpoint by directory name, pointer (`latest`, `best`) or step; every file's hash is checked."""
        path = self.directory / str(name)
        try:
            path = self._found(name)
            written = (path / "manifest.json").read_bytes()
            manifest = _object_in(written)
            if manifest.get("format") != FORMAT:
                raise CheckpointError(f"{path} has format {manifest.get('format')!r}; this version reads {FORMAT}")
            if written != sealed(manifest):
                raise CheckpointError(f"{path / 'manifest.json'} is damaged: its SHA-256 is not the one it states")
            in_shards = [file for file in manifest["files"] if ".shard-" in file]
            files = {
                file: read_verified(path / file, entry)
                for file, entry in manifest["files"].items()
                if file not in in_shards
            }
            for file in in_shards:
                verify(path / file, manifest["files"][file])
            state = json.loads(files["state.json"])
            arrays = {
                part: read_safetensors(files[f"{part}.safetensors"]) for part in state if f"{part}.safetensors" in files
            }
            pieces = read_shards(path / file for file in in_shards)

            def whole(name: str, shape: list[int]) -> ShardedArray:
                return ShardedArray(shape, *pieces[name])

            parts = {part: decoded(state[part], arrays.get(part, {}), whole) for part in state}
            model, hooks, epoch = parts["model"], parts["hooks"], parts.get("epoch", {})
        except _DAMAGE as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise storage_error("read the checkpoint", Path(error.filename or path), error, CheckpointError) from error
        return Saved(path, manifest["step"], model, hooks, epoch, manifest["engine"])

    def read_newest(self, *, strict: bool = False) -> Saved | None:
        """The checkpoint to go on from: `latest`, or the newest before it that is whole; None if there never was one.

        Where `latest` names another one than the claims, which are written before it and have a hash, those are right.
        A damaged one is named in a warning, and so is one that was written after a failure and lacks what the failure
        has cost: it is taken only if there is no other. Raises CheckpointError if all are damaged, or with `strict` for
        the first.
        """
        damaged: CheckpointError | None = None
        lacking: Saved | None = None
        names, newest, noted = self.names(), None, self._noted_newest()
        try:
            newest = self._pointed("latest")
            if newest is None and names:
                raise CheckpointError(f"{self.directory} has no `latest`, which names the newest checkpoint")
            if newest is not None and newest not in names:
                raise CheckpointError(f"`latest` names {newest}, which is not there or not complete")
            if noted is not None and newest != noted:
                raise CheckpointError(
                    f"`latest` names {newest}, but the newest that was saved or gone back to is {noted} (--from chooses)"
                )
        except CheckpointError as error:
            if strict:
                raise
            damaged = error
            before = "going back to the " + ("newest" if newest is None else "one before")
            logger.warning("%s; %s", error, f"going on from {noted}" if noted is not None else before)
            newest = noted or newest
        for name in reversed([each for each in names if newest is None or _number(each) <= _number(newest)]):
            try:
                saved = self.read(name)
                if "lacks" not in saved.engine:
                    return saved
                lacking = lacking or saved
                logger.warning("%s lacks %s; going back to the one before", saved.path, _listed(saved.engine["lacks"]))
            except CheckpointError as error:
                if strict:
                    raise
                damaged = damaged or error
                logger.warning("%s; going back to the one before", error)
        if lacking is not None and lacking.step == 0:  # nothing is lost where the run begins again
            return None
        if lacking is not None:
            logger.warning("there is none before: going on from %s, and what it lacks stays lost", lacking.path)
        elif damaged is not None:
            raise damaged
        return lacking

    def go_back(self, name: str) -> None:
        """Make this the newest checkpoint, before what was written after it is cut from the run's other files.

        Of those behind it nobody wants any; they go with the next that is written. Raises StorageError.
        """
        with storage_errors("go back to", self.directory / name):
            newer = [each for each in self.names() if _number(each) > _number(name)]
            if newer:
                what = newer[0] if len(newer) == 1 else f"{newer[0]} … {newer[-1]}"
                logger.warning("going back to %s: %s is given up", self.directory / name, what)
            before = self._read_claims()
            claims = {who: [each for each in own if each not in newer] for who, own in before.items()}
            if claims != before or self._noted_newest() != name:
                self._write_claims(claims, name)  # before `latest`, which has to agree
            if newer or content_of(self.directory / "latest") != _pointer_to(name):
                write_atomically(self.directory / "latest", _pointer_to(name))
            pointers, its_own = self.pointers(), _pointers_in(self._claims_of(name) or ())
            behind = [own for own, at in pointers.items() if at in newer]
            for pointer in [*behind, *(own for own in its_own if own not in behind and pointers.get(own) != name)]:
                self._put_back(pointer, name)

    def refuse_given_up(self, name: str) -> None:
        """CheckpointError for one behind the newest: the run has gone back from it, and its metrics are cut."""
        newest = self._noted_newest() or self._pointed("latest")
        if newest is not None and _number(name) > _number(newest):
            raise CheckpointError(
                f"{self.directory / name} was given up when the run went back to {newest}, and what the run had written "
                "until then is cut; a new run may begin with its weights (--init-from)"
            )

    def _put_back(self, pointer: str, name: str) -> None:
        """Let a pointer name the one that it named when `name` was the newest, if that is still there; else it goes."""
        for each in reversed([own for own in self.names() if _number(own) <= _number(name)]):
            if pointer in _pointers_in(self._claims_of(each) or ()):
                write_atomically(self.directory / pointer, _pointer_to(each))
                return
        (self.directory / pointer).unlink()
        sync_directory(self.directory)

    def _claims_of(self, name: str) -> list[Claim] | None:
        """Who wanted a checkpoint, as its manifest says; None for a damaged one, which is told of when it is read."""
        try:
            manifest = _object_in((self.directory / name / "manifest.json").read_bytes())
            return [Claim(*claim) for claim in manifest["claims"]]
        except _DAMAGE:
            return None

    def pointers(self) -> dict[str, str]:
        """What each pointer names, whether that is there or not. Damaged ones are left out. Raises StorageError."""
        found: dict[str, str] = {}
        with storage_errors("look into", self.directory):
            for entry in entries_of(self.directory):
                name = _name_in(content_of(entry)) if "." not in entry.name and is_file(entry) else None
                if name is not None:
                    found[entry.name] = name
        return found

    def _pointed(self, pointer: str) -> str | None:
        """What a pointer names; None if there is no such pointer. CheckpointError if it names no checkpoint."""
        path = self.directory / pointer
        with storage_errors("read", path):
            content = content_of(path) if is_file(path) else None
        if content is None:
            return None
        name = _name_in(content)
        if name is None:
            raise CheckpointError(f"{path} is damaged: it holds {content!r:.60}, not the name of a checkpoint")
        return name

    def find(self, name: str = "latest") -> Path:
        """The directory of a checkpoint; CheckpointError that lists what there is."""
        with storage_errors("look into", self.directory):
            return self._found(name)

    def _found(self, name: str) -> Path:
        name = self.named(name)
        path = self.directory / name
        if not (_NAME.fullmatch(name) and is_dir(path)):
            names = self.names()
            there = ", ".join([*self.pointers(), *(["…"] if len(names) > 10 else []), *names[-10:]]) or "none"
            raise CheckpointError(f"there is no checkpoint {name!r} in {self.directory} (there are: {there})")
        return path

    def named(self, name: str = "latest") -> str:
        """The name of the directory that a pointer, a step or the directory's path means, whether it is there or not.

        CheckpointError if it means one that is not this run's.
        """
        name = str(name)
        number = name.removeprefix("step-")
        if number.isascii() and number.isdecimal():
            return f"step-{int(number):08d}"
        if Path(name).name != name:
            if Path(name).parent.resolve() == self.directory.resolve() and _NAME.fullmatch(Path(name).name):
                return Path(name).name
            raise CheckpointError(
                f"{name!r} is not a checkpoint in {self.directory}; give a step, `latest`, `best` or another name there is"
            )
        return name if "." in name else self._pointed(name) or name

    def fingerprint(self, name: str) -> str | None:
        """Of the model's state in the directory `name`, by what its files say; None if they are not there any more."""
        try:
            manifest = _object_in((self.directory / name / "manifest.json").read_bytes())
            state = _object_in((self.directory / name / "state.json").read_bytes())
            files = {file: entry["sha256"] for file, entry in manifest["files"].items() if file.startswith("model.")}
            return hashlib.sha256(json_bytes([*(files[file] for file in sorted(files)), state["model"]])).hexdigest()
        except (OSError, *_DAMAGE):
            return None

    def names(self) -> list[str]:
        """The complete checkpoints, oldest first."""
        with storage_errors("look into", self.directory):
            there = [entry for entry in entries_of(self.directory, "step-") if _NAME.fullmatch(entry.name)]
            return sorted((entry.name for entry in there if is_file(entry / "manifest.json")), key=_number)

    def stamps(self) -> list[tuple[str, int]]:
        """The complete checkpoints and when each was written (nanoseconds), oldest first. What vanishes meanwhile is left out."""
        found: list[tuple[str, int]] = []
        for name in self.names():
            with suppress(OSError):
                found.append((name, (self.directory / name / "manifest.json").stat().st_mtime_ns))
        return found

    def clean(self) -> None:
        """Remove what a killed writer left behind, and end what it had begun."""
        with storage_errors("tidy up", self.directory):
            for before in entries_of(self.directory, ".tmp-before-"):  # killed between the renames of a replacement
                target = self.directory / before.name.removeprefix(".tmp-before-")
                if not is_there(target):
                    os.rename(before, target)
            for leftover in entries_of(self.directory, ".tmp-"):
                clear_away(leftover)
            names, pointers = self.names(), self.pointers()
            newest = pointers.get("latest")
            if len(names) == 1 and not is_there(self.directory / "latest"):
                newest = names[0]  # the first of all, and no pointer names it yet
            is_sure = self._noted_newest() in (None, newest)  # else `read_newest` tells of it
            claims = self._claims_of(newest) if newest in names and is_sure else None
            if claims is not None and any(pointers.get(each) != newest for each in ("latest", *_pointers_in(claims))):
                self._settle(str(newest), claims)

    def _write_new(
        self,
        target: Path,
        step: int,
        parts: Parts,
        engine: Mapping[str, Any],
        claims: Iterable[Claim],
        world: World | None,
    ) -> None:
        aside = self.directory / f".tmp-{target.name}"
        if world is None:
            written = self._write_parts(aside, parts, "")
        else:
            written = self._write_with_others(aside, parts, world)
        wanted = [[claim.owner, claim.keep, claim.pointer] for claim in claims]
        manifest: dict[str, Any] = {
            "format": FORMAT, "step": step, "engine": engine, "claims": wanted, "files": written, **_at_a_glance(parts, engine)
        }  # fmt: skip
        write_synced(aside / "manifest.json", sealed(manifest))
        sync_directory(aside)
        self._put_in_place(aside, target)

    def _write_with_others(self, aside: Path, parts: Parts, world: World) -> dict[str, Any]:
        """The files of this process, and the others' shards moved beside them; what the manifest says of all."""
        failure: Exception | None = None
        written: dict[str, Any] = {}
        try:
            written = self._write_parts(aside, parts, shard_file("model", world.rank, world.size))
        except Exception as error:
            failure = error
        others = world.gather_beside({} if failure is None else {"failed": str(failure)})[1:]
        if failure is not None:
            raise failure
        lost = [f"process {rank}: {each['failed']}" for rank, each in enumerate(others, 1) if "failed" in each]
        if lost:
            raise CheckpointError(f"the checkpoint is not whole: {'; '.join(lost)}")
        for each in others:
            os.rename(Path(each["at"]) / each["file"], aside / each["file"])
            clear_away(Path(each["at"]))
            written[each["file"]] = each["entry"]
        return written

    def _write_parts(self, aside: Path, parts: Parts, own_shards: str) -> dict[str, Any]:
        """Every part as JSON and arrays, and this process's shards, if there are any, in a file of that name."""
        clear_away(aside)
        aside.mkdir()
        trees = {part: encoded(state) for part, state in parts.items()}
        files: dict[str, list[Buffer]] = {"state.json": [json_bytes({part: tree for part, (tree, _) in trees.items()})]}
        for part, (_, leaves) in trees.items():
            arrays, shards = split(leaves)
            if arrays or part == "model":
                files[f"{part}.safetensors"] = safetensors(arrays)
            if shards:
                files[own_shards] = shards_as_safetensors(shards)
        return {name: write_synced(aside / name, *buffers) for name, buffers in sorted(files.items())}

    def _put_in_place(self, aside: Path, target: Path) -> None:
        if is_there(target):  # the same step again, with a later record (an epoch's end after a pause, say)
            before = self.directory / f".tmp-before-{target.name}"
            clear_away(before)
            os.rename(target, before)
            try:
                os.rename(aside, target)
            except OSError:
                with suppress(OSError):  # else `clean` does it, before the run goes on
                    os.rename(before, target)
                raise
            sync_directory(self.directory)  # the old one stays until the new one is durable
            clear_away(before)
        else:
            os.rename(aside, target)
            sync_directory(self.directory)

    def _settle(self, name: str, claims: Sequence[Claim]) -> None:
        """Move pointers to a checkpoint that is durable now, then forget what nobody wants."""
        owned = self._read_claims()
        for claim in claims:
            own = owned.setdefault(claim.owner, [])
            if name in own:
                own.remove(name)
            own.append(name)
            if claim.keep is not None:
                del own[: max(len(own) - claim.keep, 0)]
        self._write_claims(owned, name)  # before what a resume goes by
        # `latest` first: killed behind it, `clean` moves the others, which nothing that is older has to do with.
        for pointer in ["latest", *_pointers_in(claims)]:
            write_atomically(self.directory / pointer, _pointer_to(name))
        try:
            # What a pointer names stays, too: a writer that was killed may have moved the claim and not the pointer.
            kept = (each for own in owned.values() for each in own)
            self._forget({name, *kept, *self.pointers().values()})
        except OSError as error:  # the new one is complete all the same
            logger.warning("%s", storage_error("remove old checkpoints in", self.directory, error))

    def _forget(self, wanted: Collection[str]) -> None:
        for old in self.names():
            if old not in wanted:
                gone = self.directory / f".tmp-old-{old}"  # never half of one under its own name
                os.rename(self.directory / old, gone)
                clear_away(gone)

    def _make_directory(self) -> None:
        """Make it; in a run directory that was there and has gone, refuse: half of a run elsewhere helps nobody."""
        if not (self._run_was_there and is_dir(self.directory)):
            self.directory.mkdir(parents=not self._run_was_there, exist_ok=True)
            sync_directory(self.directory.parent)
            self._run_was_there = True

    def _write_claims(self, claims: dict[str, list[str]], newest: str) -> None:
        self._claims = claims
        write_atomically(self.directory / "claims.json", sealed({"claims": claims, "latest": newest}))

    def _read_claims(self) -> dict[str, list[str]]:
        """Where nobody knows who wants what, all that is there is wanted."""
        if self._claims is not None:
            return self._claims
        try:
            record = self._noted()
        except _DAMAGE:
            logger.warning("%s is damaged; every checkpoint that is there is kept", self.directory / "claims.json")
            record = None
        if record is not None:
            return record["claims"]
        found = self.names()
        return {"found": found} if found else {}

    def _noted(self) -> dict[str, Any] | None:
        """What stands in `claims.json`; None if there is none. Raises one of _DAMAGE."""
        path = self.directory / "claims.json"
        with storage_errors("read", path):
            content = content_of(path)
        if content is None:
            return None
        record = _object_in(content)
        if content != sealed(record) or "claims" not in record:
            raise ValueError(f"{path} is damaged")
        return record

    def _noted_newest(self) -> str | None:
        """What `latest` has to name; None if `claims.json` does not say (it is older, or damaged), or if that has gone."""
        try:
            name = (self._noted() or {}).get("latest")
        except _DAMAGE:
            return None
        return name if name in self.names() else None


def _in_words(error: Exception, path: Path) -> Exception:
    """What the file system refused while a checkpoint was written, with path and remedy; any other error itself."""
    if isinstance(error, StorageError) or not isinstance(error, OSError):
        return error
    return storage_error("write the checkpoint", path, error, CheckpointError)


def _at_a_glance(parts: Parts, engine: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds, for whoever reads its manifest; a resume goes by the engine's record and the states."""
    return {
        "epoch": engine.get("epoch"),
        "cursors": {stream: at["cursor"] for stream, at in engine.get("positions", {}).items()},
        "hooks": list(parts["hooks"]),
        "rngs": sorted(engine.get("rng", ())),
    }


def _object_in(content: bytes) -> dict[str, Any]:
    """What stands in a file of ours; ValueError if it is no JSON object."""
    try:
        found: Any = json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"it holds {content!r:.40}, not a JSON object")
    return cast("dict[str, Any]", found)


def _pointers_in(claims: Iterable[Claim]) -> list[str]:
    return [claim.pointer for claim in claims if claim.pointer is not None]


def _number(name: str) -> int:
    """The step of a checkpoint's name: names grow longer behind step 99,999,999."""
    return int(name.removeprefix("step-"))


def _pointer_to(name: str) -> bytes:
    return f"{name}\n".encode()


def _name_in(pointer: bytes | None) -> str | None:
    """The checkpoint that the content of a pointer names; None if it names none."""
    name = (pointer or b"").decode(errors="replace").strip()
    return name if _NAME.fullmatch(name) else None


def _listed(lacks: object) -> str:
    """What a checkpoint says that it lacks."""
    return ", ".join(map(str, cast("list[Any]", lacks))) if isinstance(lacks, list) else str(lacks)
