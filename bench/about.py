"""About a measurement: versions, hardware and date, for the JSON. Nothing that tells one machine from another by name."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from asyncloop import __version__

__all__ = ["about"]

PACKAGES = (
    "numpy",
    "anyio",
    "uvloop",
    "torch",
    "pytorch-ignite",
    "lightning",
    "accelerate",
    "spdl-core",
    "grain",
    "torchdata",
)


def about() -> dict[str, Any]:
    """Date, revision, versions, processor, cores and memory."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": _revision(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "versions": {"asyncloop": __version__, **{name: found for name in PACKAGES if (found := _version(name))}},
    }


def _revision() -> str | None:
    """The last commit that changed the package, with `-dirty` behind it if it was changed since; None outside a checkout."""
    package = Path(__file__).parent.parent / "asyncloop"
    try:
        commit = subprocess.run(
            ["git", "log", "-1", "--format=%h", "--", "."], cwd=package, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "."], cwd=package, check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit.stdout.strip()}{'-dirty' if changed else ''}" if commit.stdout.strip() else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None
