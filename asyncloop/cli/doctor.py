"""`asyncloop doctor`: versions, cores, devices, disk, and the mistakes that cost people an afternoon."""

from __future__ import annotations

import importlib
import os
import platform
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from asyncloop._version import __version__
from asyncloop.cli.terminal import print_json, print_table
from asyncloop.cli.wording import size

__all__ = ["examine"]

Verdict = Literal["ok", "note", "warning"]

_PACKAGES = ("anyio", "numpy", "pydantic", "uvloop", "safetensors", "typer", "rich", "trio")
_EXTRAS = {
    "torch": "asyncloop[torch]",
    "matplotlib": "asyncloop[plot]",
    "starlette": "asyncloop[serve]",
    "optuna": "asyncloop[tune]",
}
_LITTLE_SPACE = 2 * 2**30
_FEW_FILES = 256


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `advice` says what to do about a note or a warning."""

    what: str
    found: str
    verdict: Verdict = "ok"
    advice: str = ""


def examine(*, as_json: bool) -> int:
    """Print the report; 0 whatever is found. Imports torch only if it is installed, to ask it for devices."""
    findings = [*_versions(), *_machine(), *_devices(), *_disk(), *_limits(), *_threads(), *_shadowed()]
    if as_json:
        print_json([_as_data(each) for each in findings])
        return 0
    print_table([(each.what, each.found) for each in findings if each.verdict == "ok"])
    advice = [each for each in findings if each.verdict != "ok"]
    if advice:
        print()
        print_table([(each.verdict, each.what, each.found, each.advice) for each in advice])
    else:
        print("\nnothing to complain about")
    return 0


def _as_data(finding: Finding) -> dict[str, Any]:
    return {name: getattr(finding, name) for name in ("what", "found", "verdict", "advice")}


def _versions() -> Iterator[Finding]:
    yield Finding("asyncloop", f"{__version__} in {Path(__file__).parents[1]}")
    yield Finding("python", f"{platform.python_version()} {platform.python_implementation()}, {sys.executable}")
    for package in _PACKAGES:
        version = _version(package)
        if version is not None:
            yield Finding(package, version)
        elif package == "uvloop":
            yield Finding("uvloop", "not installed", "note", "pip install uvloop: the faster event loop is used then")
    for package, extra in _EXTRAS.items():
        version = _version(package)
        yield Finding(package, version or f"not installed (pip install '{extra}')")
    gil = getattr(sys, "_is_gil_enabled", None)
    if gil is not None and not gil():
        yield Finding("interpreter lock", "off", "note", "a free-threaded Python: asyncloop is not tested on it")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> Iterator[Finding]:
    yield Finding("system", platform.platform())
    usable = _usable_cores()
    limited = _cpu_quota()
    cores = f"{usable} of {os.cpu_count()}"
    if limited is not None and limited < usable:
        yield Finding(
            "cores", f"{cores}, but time for {limited:g}", "note",
            f"a container limits this process; set OMP_NUM_THREADS={max(int(limited), 1)}, or threads wait for each other",
        )  # fmt: skip
    else:
        yield Finding("cores", cores)
    memory = _memory()
    if memory is not None:
        yield Finding("memory", memory)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_quota() -> float | None:
    """Cores' worth of time that a control group allows (cgroup v2), None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _memory() -> str | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    values = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    return f"{size(values['MemAvailable'])} of {size(values['MemTotal'])} free"


def _devices() -> Iterator[Finding]:
    if _version("torch") is None:
        return
    try:
        torch: Any = importlib.import_module("torch")
    except Exception as error:
        yield Finding("torch", f"installed, but its import fails: {error}", "warning", "reinstall it")
        return
    cuda = torch.cuda
    if cuda.is_available():
        for index in range(cuda.device_count()):
            properties = cuda.get_device_properties(index)
            yield Finding(f"cuda:{index}", f"{properties.name}, {size(properties.total_memory)}")
    elif shutil.which("nvidia-smi"):
        yield Finding("cuda", "a driver is there, but torch cannot use it", "warning", "install a CUDA build of torch")
    else:
        yield Finding("devices", "cpu only")


def _disk() -> Iterator[Finding]:
    runs = "runs are made in it: change to another directory, or set run.root"
    yield _space("current directory", Path.cwd(), runs)
    temporary = "worker processes and libraries write there: set TMPDIR to a directory that can be written"
    try:
        yield _space("temporary files", Path(tempfile.gettempdir()), temporary)
    except OSError:  # it has tried them all
        yield Finding("temporary files", "no directory for them is writable", "warning", temporary)
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).total < 2**28:
        yield Finding(
            "shared memory", size(shutil.disk_usage(shared).total), "note",
            "worker processes pass batches through /dev/shm; in Docker: --shm-size=1g",
        )  # fmt: skip


def _space(what: str, path: Path, advice: str) -> Finding:
    free = shutil.disk_usage(path).free
    if not os.access(path, os.W_OK):
        return Finding(what, f"{path} is not writable", "warning", advice)
    found = f"{size(free)} free in {path}"
    if free < _LITTLE_SPACE:
        return Finding(what, found, "warning", "checkpoints need twice their size while they are written")
    return Finding(what, found)


def _limits() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _FEW_FILES:
        yield Finding("open files", f"at most {soft}", "warning", f"ulimit -n {min(hard, 4096)}")
    else:
        yield Finding("open files", f"at most {soft}")


def _threads() -> Iterator[Finding]:
    cores = _usable_cores()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        value = os.environ.get(name, "")
        if value.isdecimal() and int(value) > cores:
            yield Finding(name, value, "warning", f"more threads than the {cores} cores wait for each other")
        elif value:
            yield Finding(name, value)


def _shadowed() -> Iterator[Finding]:
    """Files of the user's that would be imported in the place of a module that everything needs."""
    names = sys.stdlib_module_names | {"numpy", "torch", "anyio", "rich", "typer", "asyncloop"}
    for entry in sorted(Path.cwd().iterdir()):
        if entry.suffix == ".py" and entry.stem in names:
            yield Finding(
                entry.name, "stands beside your config", "warning", f"it hides the module {entry.stem}: rename it"
            )
