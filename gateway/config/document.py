"""
A configuration file: reading it, and naming what is wrong in it.

 1. A mistake names the file, the key, what was found and what was expected there.
 2. Mistakes are collected, so that one run shows them all; a text that is no JSON or TOML at
    all is the one exception.
 3. A value of `env` or `headers`, or one that a variable went into, is never shown, only its
    type.
 4. `${VAR}` is the variable's value, `${VAR:-default}` the default where it is unset or empty,
    `$${` the two characters `${`. `${env:VAR}`, as editors write it, is `${VAR}`. A value is
    not expanded again. Any other `${` is a mistake; a `$` without a brace is just that.
 5. JSON may hold comments, as editors' own files do; a comma before a bracket is a mistake.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from attrs import Factory, define, frozen

__all__ = [
    "ConfigurationError",
    "Node",
    "Problem",
    "Report",
    "meant",
    "nearest",
    "printable",
    "readDocument",
]

MAX_FILE = 16 * 1024 * 1024
_MAX_SHOWN = 60

_VARIABLE = re.compile(
    r"\$\$\{"
    r"|\$\{(?:env:)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>(?:(?!\$\{)[^}])*))?\}"
    r"|\$\{(?P<asked>(?:input|command|config):[\w.-]{1,60})\}"
    r"|\$\{"
)
_LAST_COMMA = re.compile(r'"(?:[^"\\\n]|\\.)*+"|(?<=[^\s,\[{])\s*+,(?=\s*+[\]}])')
_COMMENT = re.compile(r'"(?:[^"\\\n]|\\.)*+"|//[^\n]*|/\*.*?\*/', re.DOTALL)
_TOML_PLACE = re.compile(r" ?\(at (?:line (\d+), column (\d+)|end of document)\)\Z")
_BARE_KEY = re.compile(r"[A-Za-z0-9_~-]+\Z")


@frozen
class Problem:
    """
    One mistake.

    source: the file, or "command line".
    key: where in it, as `mcpServers.github.args[1]` or `line 3, column 7`; "" for all of it.
    found, expected: what stands there, and what may.
    hint: a way out, "" without one.
    """

    source: str
    key: str
    found: str
    expected: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.source}: {self.key}" if self.key else self.source
        text = f"{where}: found {self.found}, expected {self.expected}"
        return f"{text}; {self.hint}" if self.hint else text


class ConfigurationError(Exception):
    """The configuration has mistakes: `problems`, one line each in `str`."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class _Object(dict[str, Any]):
    """A JSON object that remembers which of its keys came twice."""

    twice: tuple[str, ...] = ()


@define
class Report:
    """
    What was noticed while one source is read.

    environ: the variables; None: `${` has no meaning in this source.
    problems: the mistakes; another source may share the list.
    notices: what was accepted and has no effect, for the log.
    """

    source: str
    environ: Mapping[str, str] | None = None
    problems: list[Problem] = Factory(list)
    notices: list[str] = Factory(list)

    def raiseProblems(self) -> None:
        """Raise ConfigurationError if there are mistakes."""
        if self.problems:
            raise ConfigurationError(self.problems)


def nearest(word: str, options: Iterable[str], cutoff: float = 0.7) -> str:
    """The option that a mistyped word most probably means; "" if none is near."""
    lowered = {option.lower(): option for option in options}
    close = difflib.get_close_matches(word[:100].lower(), lowered, 1, cutoff)
    return lowered[close[0]] if close else ""


def meant(guess: str) -> str:
    """The hint that names a guess; "" without one."""
    return f"did you mean {_quoted(guess)}?" if guess else ""


@define
class Node:
    """
    A value of the document and where it stands.

    Each reading method returns the value as that type, or None after noting why not. A method
    of a nested value reads only that: nothing is judged that nobody reads.

    secret: whether the value must not be shown.
    """

    value: object
    key: str
    report: Report
    secret: bool = False

    def wrong(self, expected: str, found: str = "", hint: str = "") -> None:
        """Note a mistake; `found` is made from the value without one."""
        found = found or self.shown()
        self.report.problems.append(Problem(self.report.source, self.key, found, expected, hint))

    def notice(self, text: str) -> None:
        """Note something that is accepted and has no effect."""
        self.report.notices.append(f"{self.report.source}: {self.key}: {text}")

    def child(self, key: str) -> Node:
        """A member of an object; its value is None where there is none."""
        name = key if _BARE_KEY.match(key) else f"[{_quoted(key)}]"
        dot = "." if self.key and name == key else ""
        members = self.value if isinstance(self.value, dict) else {}
        return Node(members.get(key), f"{self.key}{dot}{name}", self.report, self.secret)

    def shown(self) -> str:
        """The value and its type, or only the type of a secret."""
        value, kind = self.value, _kind(self.value)
        if value is None or isinstance(value, dict | list):
            return kind
        if self.secret:
            return f"{kind} (not shown)"
        if isinstance(value, bool):
            return f"{'true' if value else 'false'} ({kind})"
        if isinstance(value, str):
            return f"{_quoted(value)} ({kind})"
        if isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**30):
            return f"{value} ({kind})"
        return kind

    def table(self, what: str = "an object") -> dict[str, Node] | None:
        """The members of an object; a key that comes twice is a mistake."""
        value = self.value
        if not isinstance(value, dict):
            self.wrong(what)
            return None
        for key in getattr(value, "twice", ()):
            self.child(key).wrong("it once", "the key twice")
        return {key: self.child(key) for key in value}

    def items(self) -> list[Node] | None:
        """The items of a list."""
        value = self.value
        if not isinstance(value, list):
            hint = "put it into brackets: [...]" if isinstance(value, str) else ""
            self.wrong("a list of strings", hint=hint)
            return None
        return [
            Node(item, f"{self.key}[{at}]", self.report, self.secret)
            for at, item in enumerate(value)
        ]

    def text(self, what: str = "a string") -> str | None:
        """
        A string, variables expanded, that can be handed to the operating system.

        What a variable went into is a secret from then on.
        """
        value = self.value
        if not isinstance(value, str):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            self.wrong(what, hint="put it into quotes" if number else "")
            return None
        if self.report.environ is not None and "${" in value:
            expanded = self._expanded(value, self.report.environ)
            if expanded is None:
                return None
            value = expanded
        if "\0" in value:
            self.wrong(f"{what} without NUL", "a NUL character in a string")
            return None
        try:
            value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            self.wrong(f"{what} of whole characters", "half a surrogate pair in a string")
            return None
        return value

    def _expanded(self, text: str, environ: Mapping[str, str]) -> str | None:
        before = len(self.report.problems)

        def value(match: re.Match[str]) -> str:
            name, default, asked = match["name"], match["default"], match["asked"]
            if match[0] == "$${":
                return "${"
            if name is None:
                found = f"${{{asked}}}" if asked else "a ${ that opens no variable"
                self.wrong(
                    "${VAR} or ${VAR:-default}",
                    found,
                    "only an editor can ask for it" if asked else "a literal ${ is written $${",
                )
                return ""
            found = environ.get(name, "")
            if found or (default is None and name in environ):
                self.secret = True
                return found
            if default is None:
                guess = nearest(name, environ, 0.85)
                hint = meant(guess) or f"a default is written ${{{name}:-...}}"
                self.wrong("a variable that is set", f"${{{name}}}, which is not set", hint)
            return default or ""

        text = _VARIABLE.sub(value, text)
        return text if len(self.report.problems) == before else None

    def flag(self) -> bool | None:
        """True or false."""
        if not isinstance(self.value, bool):
            quotes = isinstance(self.value, str) and self.value.lower() in ("true", "false")
            self.wrong("true or false", hint="take the quotes away" if quotes else "")
            return None
        return self.value

    def number(
        self, unit: str, most: float, *, whole: bool = False, mayBeNone: bool = False
    ) -> float | None:
        """A number above 0, or 0 if it `mayBeNone`, and at most `most`; `unit` says of what."""
        value = self.value
        least = "not below 0" if mayBeNone else "above 0"
        what = f"a {'whole ' if whole else ''}number of {unit} {least}"
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            digits = isinstance(value, str) and value.strip().isdecimal()
            self.wrong(what, hint="take the quotes away" if digits else "")
            return None
        fits = 0 < value <= most or (mayBeNone and value == 0)
        if not fits or not math.isfinite(value):
            self.wrong(f"{what}, at most {most:.0f}")
            return None
        return value

    def choice(self, options: Iterable[str]) -> str | None:
        """One of a few words."""
        text = self.text()
        if text is None:
            return None
        options = tuple(options)
        if text not in options:
            guess = "" if self.secret else nearest(text, options, 0.6)
            self.wrong("one of " + ", ".join(map(_quoted, options)), hint=meant(guess))
            return None
        return text


def readDocument(path: str) -> dict[str, Any]:
    """
    Read a file: TOML if its name ends in `.toml`, else JSON.

    Returns: its top-level object.
    Raises: ConfigurationError with the one thing that kept it from being read.
    """
    source = printable(path)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        _refuse(source, "", f"no readable file ({reason or error})", "a configuration file")
    if len(data) > MAX_FILE:
        _refuse(source, "", f"over {MAX_FILE} bytes", "a smaller file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        _refuse(source, f"byte {error.start + 1}", "text that is not UTF-8", "UTF-8")
    if not text.strip():
        _refuse(source, "", "an empty file", 'an object with "mcpServers"')
    document = _toml(source, text) if path.lower().endswith(".toml") else _json(source, text)
    if not isinstance(document, dict):
        _refuse(source, "", _kind(document), 'an object with "mcpServers"')
    return document


def printable(text: str) -> str:
    """Text that is safe on a terminal and in a log line."""
    return text if text.isprintable() else _quoted(text)


def _refuse(source: str, key: str, found: str, expected: str, hint: str = "") -> NoReturn:
    # No `from`: the cause may quote the file.
    raise ConfigurationError([Problem(source, key, found, expected, hint)]) from None


def _noConstant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    made = _Object(pairs)
    if len(made) < len(pairs):
        counted = Counter(key for key, _ in pairs)
        made.twice = tuple(key for key, times in counted.items() if times > 1)
    return made


def _blank(match: re.Match[str]) -> str:
    return match[0] if match[0].startswith('"') else re.sub(r"[^\n]", " ", match[0])


def _json(source: str, text: str) -> Any:
    # Editors' files have comments, and commas after the last of a list.
    if "//" in text or "/*" in text:
        text = _COMMENT.sub(_blank, text)
    text = _LAST_COMMA.sub(_blank, text)
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_noConstant)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        _refuse(source, place, f"a mistake ({error.msg})", "JSON")
    except RecursionError:
        _refuse(source, "", "a text nested too deep", "JSON")
    except ValueError as error:
        _refuse(source, "", f"a mistake ({error})", "JSON")


def _toml(source: str, text: str) -> Any:
    try:
        return tomllib.loads(text)
    except RecursionError:
        _refuse(source, "", "a text nested too deep", "TOML")
    except ValueError as error:  # TOMLDecodeError, or a number of too many digits
        place = _TOML_PLACE.search(str(error))
        what = str(error)[: place.start()] if place else str(error)
        key = ""
        if place is not None:
            key = f"line {place[1]}, column {place[2]}" if place[1] else "end of file"
        _refuse(source, key, f"a mistake ({printable(what)})", "TOML")


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return "a date or time"


def _quoted(text: str) -> str:
    """A string as JSON, which escapes everything a terminal might act on, and cut."""
    cut = text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."
    return json.dumps(cut)
