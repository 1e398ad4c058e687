"""`asyncloop …` and `python -m asyncloop …`: signal handlers first, then everything that takes time to import."""

import sys

from asyncloop.cli import signals, terminal

__all__ = ["main"]


def main() -> None:
    """Run the command of `sys.argv` and end the process with its exit code."""
    terminal.keep_descriptors()
    signals.watch.install()
    terminal.keep_streams()
    from asyncloop.cli.app import run_command

    sys.exit(run_command())


if __name__ == "__main__":
    main()
