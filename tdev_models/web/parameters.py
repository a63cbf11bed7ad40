"""The parameters of a query string, as the arguments of a public call."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any, NamedTuple, TypeAlias, Union, get_args, get_origin, get_type_hints

from starlette.requests import Request
from starlette.responses import Response

from tdev_models.errors import InvalidRequest, shown
from tdev_models.views.moments import moment
from tdev_models.views.weights import weights

_FLAGS = {"true": True, "false": False}
_ARGUMENT = re.compile(r"(?ms)^        (\w+): (.*?)(?=^        \w+: |^    \w|\Z)")


Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


class Parameter(NamedTuple):
    """One parameter of a call.

    Attributes:
        name: of the argument.
        is_required: whether the call has no default.
        schema: its JSON schema.
        read: makes the argument of a field and a text.
        meaning: what the call's docstring says.
    """

    name: str
    is_required: bool
    schema: dict[str, Any]
    read: Callable[[str, str], Any]
    meaning: str


def parameters(call: Callable[..., Any]) -> dict[str, Parameter]:
    """Return the parameters of a public call, by name."""
    hints, said = get_type_hints(call), _meanings(call)
    found = {}
    for name, argument in inspect.signature(call).parameters.items():
        schema, read = _KINDS[_kind(hints[name])]
        required = argument.default is argument.empty
        found[name] = Parameter(name, required, schema, read, said.get(name, ""))
    return found


def check_known(known: Iterable[str], given: Iterable[str]) -> None:
    """Raise InvalidRequest where a query string names what is none of the parameters."""
    for name in given:
        if name not in known:
            raise InvalidRequest(name, f"is unknown; use one of {', '.join(known)}")


def takes(*known: str) -> Callable[[Endpoint], Endpoint]:
    """Let a page refuse what it does not know: a filter that is misspelt would show all."""

    def of(respond: Endpoint) -> Endpoint:
        @wraps(respond)
        async def checked(request: Request) -> Response:
            check_known(known, request.query_params)
            return await respond(request)

        return checked

    return of


def arguments(known: dict[str, Parameter], given: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return the arguments that a query string gives.

    Args:
        known: the parameters of the call.
        given: names and texts; empty ones count as not given.

    Raises:
        InvalidRequest: a parameter is unknown, missing, there twice, or has a wrong value.
    """
    read: dict[str, Any] = {}
    for name, text in given:
        check_known(known, [name])
        if name in read:
            raise InvalidRequest(name, "is there twice")
        if text:
            read[name] = known[name].read(name, text)
    for name, parameter in known.items():
        if parameter.is_required and name not in read:
            raise InvalidRequest(name, "is required")
    return read


def _kind(hint: Any) -> Any:
    """Return the type that an argument has where it is given."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (one for one in get_args(hint) if one is not types.NoneType)
    return hint


def _text(field: str, text: str) -> str:
    return text


def whole(field: str, text: str) -> int:
    """Return a whole number, or raise InvalidRequest."""
    if not re.fullmatch(r"-?\d{1,9}", text, re.ASCII):
        raise InvalidRequest(field, f"{shown(text)} is not a whole number")
    return int(text)


def _number(field: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidRequest(field, f"{shown(text)} is not a number") from None


def _numbers(field: str, text: str) -> list[float]:
    numbers = [_number(field, part) for part in text.split(",")]
    return [int(one) if one.is_integer() else one for one in numbers]


def _flag(field: str, text: str) -> bool:
    if text not in _FLAGS:
        raise InvalidRequest(field, f"{shown(text)} is not true or false")
    return _FLAGS[text]


_KINDS: dict[Any, tuple[dict[str, Any], Callable[[str, str], Any]]] = {
    str: ({"type": "string"}, _text),
    int: ({"type": "integer"}, whole),
    float: ({"type": "number"}, _number),
    bool: ({"type": "boolean"}, _flag),
    Any: (
        {"type": "string", "examples": ["2 hours ago", "2031-05-04T03:00:00Z", "1935716400"]},
        moment,
    ),
    Sequence[float]: ({"type": "string", "examples": ["50,95,99"]}, _numbers),
    Mapping[str, float]: ({"type": "string", "examples": ["old=9,new=1"]}, weights),
}


def _meanings(call: Callable[..., Any]) -> dict[str, str]:
    """Return what a docstring says of each argument."""
    _, _, said = inspect.getdoc(call).replace("\n", "\n    ").partition("    Args:\n")  # type: ignore[union-attr]
    return {name: " ".join(text.split()) for name, text in _ARGUMENT.findall(said)}
