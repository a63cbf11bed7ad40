"""PynamoDB writes the expressions of each shape of a request once; later ones only get values.

The shape of expressions is what of them does not depend on values: which operators they have on
which attributes, in which order. `tests/property/test_prepared.py` holds each request that is
filled in to the one that PynamoDB would make anew (docs/adr/0019).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from pynamodb.expressions.condition import Comparison, Condition, In
from pynamodb.expressions.operand import Path, Value
from pynamodb.expressions.update import Action, AddAction, DeleteAction, SetAction

_VALUES = "ExpressionAttributeValues"
_MOST_PREPARED = 4096

_prepared: dict[Hashable, dict[str, Any]] = {}


def prepared(
    facts: Sequence[Hashable],
    make: Callable[[], dict[str, Any]],
    parameters: dict[str, Any],
    *conditions: Condition | None,
    actions: Sequence[Action] = (),
    first_values: Sequence[Any] = (),
) -> dict[str, Any]:
    """Return a request, made by `make` where there was none of this shape before.

    Args:
        facts: on what the request depends besides the following.
        make: returns the whole request.
        parameters: those that differ between requests of one shape, but for the values.
        conditions: its conditions, in the order in which PynamoDB writes them.
        actions: what it changes.
        first_values: the typed values that come before those of conditions and actions.
    """
    shape: list[Any] = [*facts]
    values = [*first_values]
    for condition in conditions:
        if condition is None:
            shape.append(None)
        else:
            _add(condition, shape, values)
    _add_actions(actions, shape, values)
    key = tuple(shape)
    known = _prepared.get(key)
    if known is None:
        request = make()
        if _has(request, values, len(first_values)):
            if len(_prepared) >= _MOST_PREPARED:
                _prepared.clear()
            changes = {*parameters, _VALUES}
            _prepared[key] = {
                name: None if name in changes else value for name, value in request.items()
            }
        return request
    request = {**known, **parameters}
    if values:
        request[_VALUES] = {f":{number}": value for number, value in enumerate(values)}
    return request


def _add_actions(actions: Sequence[Action], shape: list[Any], values: list[Any]) -> None:
    last: list[Action] = []
    for action in actions:
        kind = type(action)
        if kind is SetAction and type(action.values[1]) is Value:  # as most are
            path, value = action.values
            shape.append(kind)
            shape.extend(path.values[0])
            values.append(value.values[0])
        # Each kind has a clause of its own: SET, then REMOVE, which has no values, then these.
        elif kind is AddAction or kind is DeleteAction:
            last.append(action)
        else:
            _add(action, shape, values)
    for kind in (AddAction, DeleteAction) if last else ():
        for action in last:
            if type(action) is kind:
                _add(action, shape, values)


def _add(node: Any, shape: list[Any], values: list[Any]) -> None:
    """Add an action, a condition or an operand, and what is in it, in PynamoDB's order."""
    kind, inner = type(node), node.values
    shape.append(kind)
    if kind is Value:
        values.append(inner[0])
    elif kind is Path:
        shape.extend(inner[0])
    else:
        if kind is Comparison:
            shape.append(node.operator)
        elif kind is In:
            shape.append(len(inner))
        for one in inner:
            _add(one, shape, values)


def _has(request: dict[str, Any], values: Sequence[Any], made_by_pynamodb: int) -> bool:
    """Return whether a request has just these values, in this order: only then it is kept."""
    found = [*request.get(_VALUES, {}).values()]
    pairs = zip(found[made_by_pynamodb:], values[made_by_pynamodb:], strict=True)
    return len(found) == len(values) and all(one is other for one, other in pairs)
