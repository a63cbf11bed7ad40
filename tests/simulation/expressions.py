"""DynamoDB's expressions: each text is translated once, into a Python function.

Anything that is not known here raises `UnknownExpression`: the simulation must not guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from tests.simulation import values
from tests.simulation.values import Item, Typed

Condition = Callable[[Item, Mapping[str, Typed]], bool]
Update = Callable[[Item, Mapping[str, Typed]], dict[str, Typed]]

_TOKEN = re.compile(r"\s*([#:]?[A-Za-z0-9_]+|<>|<=|>=|[=<>(),.+\-\[\]])")
_COMPARISONS = {"=": "equal({}, {})", "<>": "not equal({}, {})"} | {
    sign: f"(compared({{}}, {{}}) {test})"
    for sign, test in {
        "<": "== -1",
        "<=": "in (-1, 0)",
        ">": "== 1",
        ">=": "in (0, 1)",
    }.items()
}
_TESTS = {
    "attribute_exists": "({} is not None)",
    "attribute_not_exists": "({} is None)",
    "contains": "has({}, {})",
    "begins_with": "begins({}, {})",
}


class UnknownExpression(Exception):
    """An expression that the simulation's engine cannot evaluate."""


class InvalidPath(Exception):
    """An update of a place, or from one, that the item has not."""


def condition(text: str, names: Mapping[str, str]) -> Condition:
    """Return the function that evaluates a condition, a key condition or a filter."""
    parser = _Parser(text, names)
    source = parser.condition()
    parser.end()
    function: Condition = eval(f"lambda item, values: {source}", _SCOPE)
    return function


def update(text: str, names: Mapping[str, str]) -> Update:
    """Return the function that makes the new item of the old one."""
    parser = _Parser(text, names)
    reads, writes = parser.clauses()
    lines = ["new = dict(item)", *reads, *writes, "return new"]
    scope = dict(_SCOPE)
    exec("def made(item, values):\n" + "".join(f"    {line}\n" for line in lines), scope)
    function: Update = scope["made"]
    return function


def paths(text: str, names: Mapping[str, str]) -> list[str]:
    """Return the names of a projection of top-level attributes."""
    return [names.get(part.strip(), part.strip()) for part in text.split(",")]


def equals(text: str, names: Mapping[str, str]) -> dict[str, str]:
    """Return by attribute the placeholder that it is to equal, in a key condition."""
    found = re.findall(r"([#A-Za-z0-9_]+) = (:[A-Za-z0-9_]+)", text)
    return {names.get(name, name): value for name, value in found}


class _Parser:
    def __init__(self, text: str, names: Mapping[str, str]) -> None:
        self._text, self._names = text, names
        self._tokens = _TOKEN.findall(text)
        if "".join(self._tokens) != re.sub(r"\s", "", text):
            self._unknown()
        self._at = 0

    def _unknown(self) -> NoReturn:
        raise UnknownExpression(self._text)

    def _next(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self, wanted: str = "") -> str:
        token = self._next()
        if not token or (wanted and token.upper() != wanted):
            self._unknown()
        self._at += 1
        return token

    def _has(self, word: str) -> bool:
        if self._next().upper() != word:
            return False
        self._at += 1
        return True

    def end(self) -> None:
        """Raise unless all was read."""
        if self._next():
            self._unknown()

    # ------------------------------------------------------------------ conditions

    def condition(self) -> str:
        """Return the Python expression of a condition."""
        parts = [self._all()]
        while self._has("OR"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else f"({' or '.join(parts)})"

    def _all(self) -> str:
        parts = [self._one()]
        while self._has("AND"):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else f"({' and '.join(parts)})"

    def _one(self) -> str:
        if self._has("NOT"):
            return f"(not {self._one()})"
        if self._has("("):
            inside = self.condition()
            self._take(")")
            return inside
        if (test := _TESTS.get(self._next())) is not None:
            self._take()
            arguments = self._arguments()
            return self._filled(test, arguments)
        left = self._operand()
        if self._has("BETWEEN"):
            low = self._operand()
            self._take("AND")
            tests = (_COMPARISONS[">="].format(left, low), _COMPARISONS["<="])
            return f"({tests[0]} and {tests[1].format(left, self._operand())})"
        if self._has("IN"):
            wanted = self._arguments()
            return f"any(equal({left}, one) for one in ({', '.join(wanted)},))"
        comparison = _COMPARISONS.get(self._take()) or self._unknown()
        return comparison.format(left, self._operand())

    def _filled(self, test: str, arguments: Sequence[str]) -> str:
        if test.count("{}") != len(arguments):
            self._unknown()
        return test.format(*arguments)

    def _arguments(self) -> list[str]:
        self._take("(")
        found = [self._operand()]
        while self._has(","):
            found.append(self._operand())
        self._take(")")
        return found

    def _operand(self) -> str:
        token = self._next()
        if token.startswith(":"):
            return f"values[{self._take()!r}]"
        if token == "size":
            self._take()
            return self._filled("size({})", self._arguments())
        return _read(self._path())

    def _path(self) -> list[str]:
        path = [self._name()]
        while self._has("."):
            path.append(self._name())
        if self._next() == "[":
            self._unknown()
        return path

    def _name(self) -> str:
        token = self._take()
        if token.startswith("#"):
            return self._names[token]
        return token if re.match("[A-Za-z_]", token) else self._unknown()

    # ------------------------------------------------------------------ updates

    def clauses(self) -> tuple[list[str], list[str]]:
        """Return the lines that read the old item, and those that write the new one."""
        reads: list[str] = []
        writes: list[str] = []
        makers = {"SET": self._set, "REMOVE": self._remove, "ADD": self._add, "DELETE": self._del}
        while word := self._next().upper():
            self._take()
            maker = makers.get(word) or self._unknown()
            while True:
                path = self._path()
                variable = f"v{len(reads)}"
                source, write = maker(path, variable)
                reads.append(f"{variable} = {source}")
                writes.append(write)
                if not self._has(","):
                    break
        return reads, writes

    def _set(self, path: list[str], variable: str) -> tuple[str, str]:
        self._take("=")
        source = self._value()
        if self._next() in ("+", "-"):
            sign = -1 if self._take() == "-" else 1
            source = f"total({source}, {self._value()}, {sign})"
        return source, _write(path, variable)

    def _value(self) -> str:
        """Return the expression of a value that must be there."""
        token = self._next()
        if token.startswith(":"):
            return f"stored(values[{self._take()!r}])"
        if token == "if_not_exists":
            self._take()
            self._take("(")
            path = self._path()
            self._take(",")
            default = self._value()
            self._take(")")
            return f"({_read(path)} or {default})"
        if token == "list_append":
            self._take()
            self._take("(")
            first = self._value()
            self._take(",")
            source = f"joined({first}, {self._value()})"
            self._take(")")
            return source
        return f"there({_read(self._path())})"

    def _remove(self, path: list[str], variable: str) -> tuple[str, str]:
        remove = (
            f"new.pop({path[0]!r}, None)" if len(path) == 1 else f"put(new, {tuple(path)!r}, None)"
        )
        return "None", remove

    def _add(self, path: list[str], variable: str) -> tuple[str, str]:
        return f"added({_read(path)}, values[{self._take()!r}])", _write(path, variable)

    def _del(self, path: list[str], variable: str) -> tuple[str, str]:
        source = f"without({_read(path)}, values[{self._take()!r}])"
        return source, f"put(new, {tuple(path)!r}, {variable})"


def _read(path: Sequence[str]) -> str:
    return f"item.get({path[0]!r})" if len(path) == 1 else f"deep(item, {tuple(path)!r})"


def _write(path: Sequence[str], variable: str) -> str:
    if len(path) == 1:
        return f"new[{path[0]!r}] = {variable}"
    return f"put(new, {tuple(path)!r}, {variable})"


def _deep(item: Item, path: Sequence[str]) -> Typed | None:
    value: Typed | None = item.get(path[0])
    for name in path[1:]:
        value = None if value is None else value.get("M", {}).get(name)
    return value


def _put(new: dict[str, Typed], path: Sequence[str], value: Typed | None) -> None:
    target = new
    for name in path[:-1]:
        parent = target.get(name, {})
        if "M" not in parent:
            raise InvalidPath(path)
        inside = dict(parent["M"])
        target[name] = {"M": inside}
        target = inside
    if value is None:
        target.pop(path[-1], None)
    else:
        target[path[-1]] = value


def _there(value: Typed | None) -> Typed:
    if value is None:
        raise InvalidPath
    return value


def _joined(left: Typed, right: Typed) -> Typed:
    return {"L": [*left["L"], *right["L"]]}


_SCOPE: dict[str, Any] = {
    **{name: getattr(values, name) for name in dir(values) if not name.startswith("_")},
    "deep": _deep,
    "put": _put,
    "there": _there,
    "joined": _joined,
}
