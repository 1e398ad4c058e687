"""SavedConfig: the config that a run has stored, and who takes over for a model's class that is gone."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, cast

from asyncloop.archive import run_in
from asyncloop.config import Config, InvalidConfig, import_object, load_config
from asyncloop.config.components import OFFERED
from asyncloop.config.signature import Constructor
from asyncloop.errors import NothingToResumeError
from asyncloop.storage import is_dir, is_file, storage_error, storage_errors

__all__ = ["SavedConfig", "check_stored"]

logger = logging.getLogger("asyncloop")


class SavedConfig:
    """The config of a saved run. Its modules come from the folders that the run has imported them from, while those are
    there; else from the run's own copies.

    `fallback` ("module:Class", a checkpoint's `restore_fallback`) takes the place of the model's class if that is gone.
    Methods block, and import the user's modules.
    """

    def __init__(self, run: Path, fallback: str | None = None) -> None:
        self.run, self._fallback = run, fallback
        self.restored: dict[str, Any] | None = None
        """The stored values with the fallback for the model's class; None as long as nobody has to take over."""
        record = run_in(run).record
        imported = _imported(record)
        own = [Path(record.get("folder") or ""), *map(Path, imported)]
        copies = dict.fromkeys([run / "code", *(run / "code" / copy for copy in imported.values())])
        with storage_errors("look for the classes of", run):
            there = list(takewhile(is_dir, own))
            self.folders = [*there, *filter(is_dir, copies)]
        if len(there) < len(own):
            logger.warning("%s is gone: classes come from the run's own copy, %s", own[len(there)], run / "code")

    def values(self) -> dict[str, Any]:
        """Every value that the run has used, as its resolved.toml says."""
        path = self.run / "resolved.toml"
        with storage_errors("read", path):
            return tomllib.loads(path.read_text(encoding="utf-8"))

    def load(
        self,
        source: str | Path | Mapping[str, Any] | None = None,
        *,
        set: Mapping[str, Any] | Sequence[str] = (),
        for_eval: str | None = None,
    ) -> Config:
        """The config, or `source` in its place. Takes what `load_config` takes and raises what it raises.

        NothingToResumeError if the run has stored none, StorageError if the disk refuses it. Warns when the fallback
        takes over, once.
        """
        if source is not None:
            return load_config(source, set=set, for_eval=for_eval)
        check_stored(self.run)
        path = self.run / "resolved.toml"
        try:
            with storage_errors("read", path):
                return load_config(path, set=set, for_eval=for_eval, folders=self.folders)
        except InvalidConfig as error:
            if (refused := _refusal(error)) is not None:
                raise storage_error("read", path, refused) from error
            document = self._restored(error) if _is_gone(error) else None
            if document is None:
                raise
        return load_config(document, set=set, for_eval=for_eval, folders=self.folders)

    def _restored(self, error: InvalidConfig) -> dict[str, Any] | None:
        """The values with the fallback in them, if there is one. One that cannot be imported is noted on `error`."""
        if self.restored is None and self._fallback is not None:
            try:
                self.restored = self._with(self._fallback)
            except InvalidConfig as second:
                error.add_note(f"its restore_fallback cannot be imported either: {second}")
        return self.restored

    def _with(self, fallback: str) -> dict[str, Any]:
        """The stored values with the fallback as the model, and of [model] the keys that this one takes."""
        takes = Constructor.of(cast(Callable[..., object], import_object(fallback, kind="model")))
        document = self.values()
        table = document["model"]
        document["model"] = {**_taken(table, takes), "class": fallback}
        for section in document.get("eval", {}).values():
            if "model" in section and section["model"].get("class", table["class"]) == table["class"]:
                section["model"] = _taken(section["model"], takes)
        left_out = [name for name in table if name not in document["model"]]
        without = f" without {', '.join(left_out)}, which it does not take" if left_out else ""
        logger.warning(
            "%s: the model's class %s is gone; restored as %s%s", self.run, table["class"], fallback, without
        )
        return document


def _imported(record: Mapping[str, Any]) -> dict[str, str]:
    """The other folders that a run has imported modules from, and where in its `code` their copies are."""
    found: object = record.get("imported")
    table = cast("dict[str, object]", found) if isinstance(found, dict) else {}
    return {folder: copy for folder, copy in table.items() if isinstance(copy, str)}


def check_stored(run: Path) -> None:
    """NothingToResumeError, with what to do, for a run that was made by an Engine and has stored no config."""
    path = run / "resolved.toml"
    with storage_errors("look for", path):
        is_stored = is_file(path)
    if not is_stored:
        raise NothingToResumeError(
            f"{run} has no resolved.toml: it was made by an Engine in Python, which stores no config. Go on with it there, "
            f"open_run(engine=Engine(…), resume={str(run)!r}); evaluate it there, or with a config that names its dataset "
            "and its model (asyncloop eval … --config CFG)"
        )


def _refusal(error: InvalidConfig) -> OSError | None:
    """What the disk said to who wanted to read the file itself, if that is what is wrong."""
    causes = [each.cause for each in error.details if not each.key]
    return next((cause for cause in causes if isinstance(cause, OSError)), None)


def _is_gone(error: InvalidConfig) -> bool:
    """Whether the model's class is missing because its module or its name is; not if importing it fails."""
    return any(each.key == "model.class" and each.cause is None for each in error.details)


def _taken(table: Mapping[str, Any], takes: Constructor) -> dict[str, Any]:
    """The arguments in a [model] table that a constructor takes."""
    names = takes.parameters.keys() - OFFERED["model"]
    return {name: value for name, value in table.items() if name != "class" and (name in names or takes.open)}
