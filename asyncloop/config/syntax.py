"""Syntax errors of TOML, in words for somebody who writes it for the first time. tomllib finds them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from asyncloop.config.problem import Origin, Problem

__all__ = ["syntax_problem"]

_FOUND = re.compile(r"(?P<what>.*) \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)", re.S)
_TABLE = re.compile(r"\s*(\[\[?)([^\[\]]*)\]")
_KEY = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)""")
_WORD = re.compile(r"""[^\s,\]}#]*""")


def syntax_problem(error: ValueError, text: str, file: str) -> Problem:
    """What tomllib said about `text`, with the key it is about if that can be told."""
    found = _FOUND.fullmatch(str(error))
    if found is None:
        return Problem(f"not valid TOML: {error}", origin=Origin(file=file), cause=error)
    lines = text.split("\n")
    line = int(found["line"] or len(lines))
    column = int(found["column"] or len(lines[-1]) + 1)
    statements = _statements(lines, line)
    mistake = _Mistake(found["what"], lines, statements, line - 1, column - 1)
    message, hint, (line, column, width) = mistake.told()
    key = mistake.dotted_key
    return Problem(f"not valid TOML: {message}", key, Origin(key, file, line + 1, column + 1, width), hint, error)


def _statements(lines: Sequence[str], until: int) -> list[int]:
    """The indices of the lines that begin a statement, the last one being that of the one with line number `until`."""
    begins = [0]
    for end in range(1, until):
        try:
            tomllib.loads("\n".join(lines[begins[-1] : end]))
        except ValueError:
            continue  # of several lines
        begins.append(end)
    return begins


_Place = tuple[int, int, int]
"""Line and column from 0, and how many characters to mark."""


@dataclass(frozen=True, slots=True)
class _Mistake:
    """One mistake that tomllib found at `line` and `column` (from 0), in the statement that begins last."""

    what: str
    lines: Sequence[str]
    statements: Sequence[int]
    line: int
    column: int

    def told(self) -> tuple[str, str, _Place]:
        """The message, what to do next, and the place to point at."""
        for pattern, tell in _TELLERS:
            if re.match(pattern, self.what):
                return tell(self)
        return self.what[:1].lower() + self.what[1:], "", self.here

    # --- where it is ----------------------------------------------------------------------------------------------

    @property
    def here(self) -> _Place:
        return self.line, self.column, 1

    @property
    def begin(self) -> int:
        return self.statements[-1]

    @property
    def statement(self) -> str:
        """The first line of the statement."""
        return self.lines[self.begin]

    @property
    def rest(self) -> str:
        """What stands at the place and behind it, without a comment."""
        return self.lines[self.line][self.column :].partition("#")[0].strip()

    @property
    def value(self) -> str:
        return self.statement.partition("=")[2].partition("#")[0].strip()

    @property
    def value_begins(self) -> _Place:
        before, equals, after = self.statement.partition("=")
        at = len(before) + len(equals) + len(after) - len(after.lstrip()) if equals else self.column
        return self.begin, at, 1

    @property
    def key(self) -> str:
        match = _KEY.match(self.statement)
        return "" if match is None else match[1]

    @property
    def table(self) -> str:
        """The table that the statement stands in, those in arrays with their number; or the one it declares itself."""
        tables = [match for at in self.statements if (match := _TABLE.match(self.lines[at]))]
        if not tables:
            return ""
        name = tables[-1][2].strip()
        same = sum(table[2].strip() == name for table in tables)
        return f"{name}.{same - 1}" if tables[-1][1] == "[[" else name

    @property
    def dotted_key(self) -> str:
        parts = (self.table, self.key)
        return ".".join(part for part in parts if part)

    def first_like(self, pattern: str) -> int | None:
        """The number of the earlier line that this one repeats: in the same table, if it is a key's."""
        inside = not self.statement.lstrip().startswith("[")
        for at in reversed(self.statements[:-1]):
            if re.match(pattern, self.lines[at]):
                return at + 1
            if inside and self.lines[at].lstrip().startswith("["):
                return None
        return None


# --- in words -----------------------------------------------------------------------------------------------------


def _no_value(mistake: _Mistake) -> tuple[str, str, _Place]:
    rest, (line, column, _) = mistake.rest, mistake.here
    if not rest:
        if line != mistake.begin:
            return _unclosed(mistake)
        return f"`{mistake.key}` has no value", "write one after the `=`, or remove the line", mistake.here
    match = _WORD.match(rest)
    word = match[0] if match and match[0] else rest[0]
    message, place = f"`{word}` is no value", (line, column, len(word))
    if word.lower() in ("true", "false"):
        return message, f"write {word.lower()}", place
    if word.lower() in ("none", "null", "nil"):
        return message, "TOML has no null: leave the key out", place
    if word[0] in "“”„‘’":
        return message, "a string stands between straight quotes, \"…\" or '…'", place
    if word[0] in ".+-0123456789":
        return message, "a number has digits on both sides of its point, as 0.5", place
    text = mistake.value if mistake.value == rest else word
    return message, f"a string is written in quotes: {_quoted(text)}", place


def _unclosed(mistake: _Mistake) -> tuple[str, str, _Place]:
    """A bracket, a brace or a quote that has no other end: told where it begins, for that is what has to be looked at."""
    opening = mistake.value[:1]
    kind = {"[": "list", "{": "table"}.get(opening, "string")
    end = {"[": "]", "{": "}"}.get(opening, opening * 3 if mistake.value.startswith(opening * 3) else opening)
    if mistake.line == mistake.begin and kind != "string":
        return f"expected `,` or `{end}` in the {kind}", "", mistake.here
    hint = f"end it with `{end}`" if kind == "string" else f"end it with `{end}`, and put a `,` between what it holds"
    return f"the {kind} that begins here is not closed", hint, mistake.value_begins


def _unclosed_text(mistake: _Mistake) -> tuple[str, str, _Place]:
    if "\\n" not in mistake.what and not mistake.what.startswith(("Unterminated", "Expected")):
        return mistake.what[:1].lower() + mistake.what[1:], "", mistake.here
    if mistake.line != mistake.begin or mistake.value[:1] in ("'", '"'):
        return _unclosed(mistake)
    return "the string that ends here is not closed", "end it with the quote it begins with", mistake.here


def _no_equals(mistake: _Mistake) -> tuple[str, str, _Place]:
    if mistake.rest.startswith("]") and mistake.line == mistake.begin:
        return f"`]` without a `[` before `{mistake.key}`", f"a table begins with [{mistake.key}]", mistake.here
    key = mistake.key if mistake.line == mistake.begin else "the key"
    hint = "in TOML it is `key = value`" if mistake.rest.startswith(":") else ""
    return f"expected `=` after `{key}`", hint, mistake.here


def _given_twice(mistake: _Mistake) -> tuple[str, str, _Place]:
    key, statement = mistake.key, mistake.statement
    indent = len(statement) - len(statement.lstrip())
    if not key or mistake.line != mistake.begin:
        name = mistake.table
        return f"[{name}] cannot be a table: that key has a value already", "", (mistake.begin, indent, len(statement))
    place = mistake.begin, indent, len(key)
    first = mistake.first_like(rf"\s*{re.escape(key)}\s*=")
    if first is None:
        return f"`{key}` has a value already, or is part of one", "", place
    return f"`{key}` is given twice, first in line {first}", "keep one of the two", place


def _declared_twice(mistake: _Mistake) -> tuple[str, str, _Place]:
    match = _TABLE.match(mistake.statement)
    name = match[2].strip() if match else mistake.table
    place = mistake.begin, 0, len(mistake.statement.rstrip())
    if name == "hooks":
        return "[hooks] stands here although there are hooks before", "write [[hooks]] for each hook", place
    first = mistake.first_like(rf"\s*\[+\s*{re.escape(name)}\s*\]")
    where = f", first in line {first}" if first else ""
    return f"[{name}] is declared twice{where}", f"put all its keys under one [{name}]", place


def _too_much(mistake: _Mistake) -> tuple[str, str, _Place]:
    rest = mistake.rest
    place = mistake.line, mistake.column, len(rest)
    if mistake.statement.lstrip().startswith("["):
        return f"`{rest}` cannot follow a table's name", "put it on a line of its own", place
    is_bare = mistake.line == mistake.begin and mistake.value[:1] not in ("[", "{", "'", '"', "")
    hint = f"a string is written in quotes: {_quoted(mistake.value)}" if is_bare else "one line holds one key"
    if is_bare and mistake.value[:1] == "0" and mistake.value.isdecimal():
        hint = "a number has no leading zeros"
    if rest == ";":
        hint = "remove it"
    return f"`{rest}` cannot follow a value", hint, place


def _no_statement(mistake: _Mistake) -> tuple[str, str, _Place]:
    place = mistake.line, mistake.column, max(1, len(mistake.rest))
    return "this is neither `key = value` nor `[table]` nor `# comment`", "", place


def _no_key(mistake: _Mistake) -> tuple[str, str, _Place]:
    if mistake.rest or mistake.statement.lstrip().startswith("["):
        return "expected a key", "a key of other characters than letters, digits, `_` and `-` is quoted", mistake.here
    return "a table in braces ends in the line it begins in", "a longer one is written as [table]", mistake.here


def _no_header(mistake: _Mistake) -> tuple[str, str, _Place]:
    end = "]]" if "]]" in mistake.what else "]"
    return f"expected `{end}` after the table's name", "", mistake.here


def _no_escape(mistake: _Mistake) -> tuple[str, str, _Place]:
    at = mistake.lines[mistake.line].rfind("\\", 0, mistake.column)
    place = mistake.line, max(at, 0), 1
    return "this `\\` begins no escape that TOML knows", "write `\\\\`, or the string in single quotes", place


def _quoted(text: str) -> str:
    return '"' + text.strip("\"'“”„‘’;") + '"'


_TELLERS: Sequence[tuple[str, Callable[[_Mistake], tuple[str, str, _Place]]]] = (
    ("Invalid value", _no_value),
    ("Unclosed", _unclosed),
    ("Illegal character|Unterminated string|Expected [\"']['\"]", _unclosed_text),
    ("Expected '=' after", _no_equals),
    ("Expected '\\]", _no_header),
    ("Expected newline", _too_much),
    ("Cannot declare", _declared_twice),
    ("Cannot", _given_twice),
    ("Invalid statement", _no_statement),
    ("Invalid initial", _no_key),
    (r"Unescaped|Invalid hex|Escaped", _no_escape),
)
