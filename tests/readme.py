"""The README as its tests read it: its blocks of code, and the commands for a project of one's own."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["README", "blocks", "own_commands"]

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", README, re.DOTALL)


def own_commands() -> list[list[str]]:
    """Those of `asyncloop`, in words and in order. What runs an example is in tests/test_examples.py."""
    commands = [line.partition("#")[0].split() for line in "".join(blocks("sh")).splitlines()]
    commands = [words for words in commands if words[:1] == ["asyncloop"] and "examples/" not in words[-1]]
    assert len(commands) >= 5
    return commands
