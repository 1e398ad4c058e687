"""Draw docs/img/demo.svg: what a terminal shows of `asyncloop run examples/digits/cfg.toml`, from a real run.

python docs/img/make_demo.py
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent.parent
COMMAND = "asyncloop run examples/digits/cfg.toml"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        words = [*COMMAND.split(), "--set", f'run.root="{folder}/runs"', "--progress", "plain"]
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
        lines = [line.replace(f"{folder}/", "") for line in done.stdout.splitlines()]
    epochs = [line for line in lines if line.startswith("epoch ")]
    rest = lines[lines.index(next(line for line in lines if line.startswith("completed"))) :]
    console = Console(record=True, width=132, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(Text.assemble(("$ ", "green"), (COMMAND, "bold")))
    for line in [*epochs[:4], "⋮", *epochs[-2:]]:
        console.print(Text(line), style="dim" if line == "⋮" else "")
    for line in rest:
        name, _, value = line.rpartition(" ")
        console.print(
            Text.assemble(f"{name} ", (value, "bold cyan"))
            if line.startswith(("train", "valid", "test"))
            else Text(line)
        )
    picture = console.export_svg(title="asyncloop")
    picture = re.sub(
        r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL
    )  # nothing to fetch: any monospace font will do
    Path(__file__).with_name("demo.svg").write_text(picture)


if __name__ == "__main__":
    main()
