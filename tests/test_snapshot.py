"""The snapshot of code and git state: bounded, never fatal, and honest about what it lacks."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from asyncloop import snapshot
from asyncloop.snapshot import copy_code, copy_modules, git_state


@pytest.fixture
def work_tree(tmp_path: Path) -> Path:
    """A git work tree with a file that was changed since its only revision."""
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "a.py").write_text("one\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "a.py"], [*who, "commit", "-qm", "one"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    (folder / "a.py").write_text("two\n")
    return folder


def configured(folder: Path, key: str, value: str) -> None:
    subprocess.run(["git", "config", key, value], cwd=folder, check=True)


def test_the_diff_is_plain_whatever_the_user_has_set_up_to_read_it(work_tree: Path) -> None:
    (work_tree / "show").write_text(f"#!/bin/sh\ntouch {work_tree}/called\n")
    (work_tree / "show").chmod(0o755)
    (work_tree / ".gitattributes").write_text("*.py diff=mine\n")
    configured(work_tree, "diff.external", str(work_tree / "show"))
    configured(work_tree, "diff.mine.textconv", str(work_tree / "show"))
    configured(work_tree, "color.ui", "always")
    found = git_state([work_tree])
    assert found is not None
    assert len(found["revision"]) == 40
    assert "-one\n+two\n" in found["diff"]
    assert "\x1b" not in found["diff"]
    assert not (work_tree / "called").exists()


def test_a_long_diff_is_read_up_to_its_bound(work_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "_DIFF_BYTES", 1000)
    (work_tree / "a.py").write_text("x\n" * 5_000_000)
    found = git_state([work_tree])
    assert found is not None
    assert len(found["diff"]) == 1000


@pytest.mark.parametrize("diff", ["exit 1", "exec sleep 100"])
def test_the_revision_is_kept_when_only_the_diff_fails(
    work_tree: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, diff: str
) -> None:
    git = work_tree / "bin" / "git"
    git.parent.mkdir()
    git.write_text(f'#!/bin/sh\ncase "$*" in *diff*) {diff};; *) exec {shutil.which("git")} "$@";; esac\n')
    git.chmod(0o755)
    monkeypatch.setenv("PATH", f"{git.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(snapshot, "_GIT_S", 2.0)
    found = git_state([work_tree])
    assert found is not None
    assert list(found) == ["revision"]
    assert "changes since the git revision are not recorded" in caplog.text


def test_a_file_that_cannot_be_copied_is_counted_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "below").mkdir(parents=True)
    for name in ("a.py", "b.py", "c.toml", "below/d.py"):
        (source / name).write_text(name)
    write = Path.write_bytes

    def half_written(path: Path, content: bytes) -> int:
        if path.name in ("a.py", "b.py"):
            write(path, content[:1])
            raise OSError(5, "Input/output error")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", half_written)
    copy_code(source, target, tmp_path / "run")
    assert {str(path.relative_to(target)) for path in target.rglob("*.*")} == {"c.toml", "below/d.py"}
    assert caplog.text.count("WARNING") == 1
    assert "lacks 2 that cannot be copied" in caplog.text


def test_a_folder_of_data_is_not_walked_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(snapshot, "_ENTRIES", 50)
    source, target = tmp_path / "source", tmp_path / "target"
    for n in range(3):
        (source / "data" / str(n)).mkdir(parents=True)
        for i in range(40):
            (source / "data" / str(n) / f"{i}.png").touch()
    (source / "train.py").touch()
    copy_code(source, target, tmp_path / "run")
    assert (target / "train.py").is_file()
    assert "the code snapshot stops at 50 names" in caplog.text


def test_runs_environments_and_the_run_itself_are_no_code(tmp_path: Path) -> None:
    source, run_dir = tmp_path, tmp_path / "mine"
    for name in ("mine/a.py", "old/run.json", "old/a.py", "env/pyvenv.cfg", "env/a.py", ".git/a.py", "lib/a.py"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).touch()
    (source / "run.json").touch()
    copy_code(source, run_dir / "code", run_dir)
    assert [str(path.relative_to(run_dir)) for path in (run_dir / "code").rglob("*.py")] == ["code/lib/a.py"]


def below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))


def written(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    ("folder", "copied", "imported"),
    [
        ("configs", ["cfg.toml", "lone.py", "package/a.py", "package/deep/b.toml"], "."),
        (".", ["configs/cfg.toml", "lone.py", "other.py", "package/a.py", "package/deep/b.toml"], "."),
        ("..", ["work/configs/cfg.toml", "work/lone.py", "work/other.py", "work/package/a.py",
                "work/package/deep/b.toml"], "work"),
        ("package/deep", ["b.toml", "lone.py", "package/a.py"], "."),
    ],
)  # fmt: skip
def test_modules_are_copied_to_where_they_are_imported_from_and_none_twice(
    tmp_path: Path, folder: str, copied: list[str], imported: str
) -> None:
    work, target = tmp_path / "user" / "work", tmp_path / "target"
    written(work, "configs/cfg.toml", "package/a.py", "package/deep/b.toml", "lone.py", "other.py")
    own = (work / folder).resolve()
    copy_code(own, target, tmp_path / "run")
    found = copy_modules([work / "package", work / "lone.py"], work, own, target, tmp_path / "run")
    assert below(target) == copied
    assert found == {str(work): imported}


def test_modules_that_the_copy_of_the_folder_has_not_come_to_are_copied_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(snapshot, "_CODE_FILES", 2)
    written(tmp_path / "user", "a.py", "b.py", "work/c.py", "work/package/d.py", "work/package/e.py")
    work = tmp_path / "user" / "work"
    copy_code(tmp_path / "user", tmp_path / "target", tmp_path / "run")
    copy_modules([work / "package", work / "c.py"], work, tmp_path / "user", tmp_path / "target", tmp_path / "run")
    assert below(tmp_path / "target") == ["a.py", "b.py", "work/package/d.py", "work/package/e.py"]
    assert caplog.text.count("the code snapshot stops at 2 files") == 2
