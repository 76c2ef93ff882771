"""Settings that say what is wrong with them: an unknown name or a value of a wrong type is one line, at construction.

Here: the decorator `settings`, and what it is made of for those who turn text into settings (`accepts`, `words`).
Not here: the range of a value, which every class checks itself. Invariant: a value that was accepted is of its declared
type; numbers of NumPy have become Python's, so that they compare, print and are stored alike.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, Union, Unpack, cast, get_args, get_origin, get_type_hints

import numpy as np

from fieldfare.core.errors import UsageError
from fieldfare.core.recipe import Recipe, recorded

T = TypeVar("T")


def settings(made: T) -> T:
    """A dataclass, or a function that makes something, which refuses unknown, missing and wrongly typed settings.

    What a function makes remembers the call, if it is `Recorded`, so that one argument can be changed later.

    >>> @settings
    ... @dataclasses.dataclass(frozen=True)
    ... class Oven:
    ...     degrees: float = 200.0
    >>> Oven(degrees="hot")
    Traceback (most recent call last):
    fieldfare.core.errors.UsageError: Oven(degrees='hot'): use a number.
    """
    if isinstance(made, type):
        init = cast(Callable[..., None], made.__init__)
        cast(Any, made).__init__ = _guarded(init, made, skip=1)
        return cast(T, made)
    return cast(T, _guarded(cast(Callable[..., Any], made), made, skip=0))


def _guarded(call: Callable[..., Any], owner: Any, skip: int) -> Callable[..., Any]:
    """`call` behind checks of its arguments, the first `skip` (self) left alone."""
    signature = inspect.signature(call)
    name = str(owner.__name__)

    @functools.wraps(call)
    def guarded(*args: Any, **given: Any) -> Any:
        hints = hints_of(owner)
        known = [p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD][skip:]
        known += [key for key in hints if key not in known and not isinstance(owner, type)]
        for key in given:
            if key not in known:
                raise UsageError(unknown_key(key, known, f"{name}(...)"))
        try:
            bound = signature.bind(*args, **given)
        except TypeError as error:
            raise UsageError(f"{name}(...): {error}; it takes {', '.join(known)}.") from None
        inside = [bound.arguments]
        inside += [bound.arguments[p.name] for p in signature.parameters.values()
                   if p.kind is p.VAR_KEYWORD and p.name in bound.arguments]  # fmt: skip
        for values in inside:
            for key in values.keys() & hints.keys() & set(known):
                values[key] = _checked(owner, key, values[key], hints[key])
        made = call(*bound.args, **bound.kwargs)
        return made if skip else recorded(made, Recipe(guarded, _flat(bound), tuple(known)))

    return guarded


def _flat(bound: inspect.BoundArguments) -> dict[str, Any]:
    """All arguments of a call by name, defaults too, and those of `**more` beside the others."""
    bound.apply_defaults()
    flat = dict(bound.arguments)
    for p in bound.signature.parameters.values():
        if p.kind is p.VAR_KEYWORD:
            flat |= flat.pop(p.name)
    return flat


def _checked(owner: Any, name: str, value: Any, hint: Any) -> Any:
    if not accepts(value, hint):
        told = repr(value)
        told = told if len(told) <= 60 else f"<{type(value).__name__}>"
        raise UsageError(f"{owner.__name__}({name}={told}): use {needed(owner, name)}.")
    return cast(Any, value).item() if isinstance(value, np.integer | np.floating) else value


@functools.cache
def hints_of(owner: Any) -> Mapping[str, Any]:
    """The declared type of every setting; {} where a name in them is known to type checkers alone."""
    try:
        found = get_type_hints(owner)
    except NameError:
        return {}
    found.pop("return", None)
    for name, hint in list(found.items()):
        if get_origin(hint) is Unpack:  # **common: Unpack[TypedDict]
            del found[name]
            found |= get_type_hints(get_args(hint)[0])
    return found


def needed(owner: Any, name: str) -> str:
    """What setting `name` takes: the words in its field's metadata under "use", else those of its type."""
    fields = dataclasses.fields(owner) if dataclasses.is_dataclass(owner) else ()
    told = [field.metadata.get("use") for field in fields if field.name == name]
    return told[0] if told and told[0] else words(hints_of(owner).get(name, Any))


def unknown_key(given: str, known: Iterable[str], where: str) -> str:
    """One line for a setting that does not exist, with the nearest that does.

    >>> unknown_key("trainig", ["training", "data"], "Job(...)")
    "unknown key 'trainig' in Job(...): did you mean 'training'?"
    """
    names = list(known)
    close = difflib.get_close_matches(given, names, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(names) or 'none'}."
    return f"unknown key {given!r} in {where}: {hint}"


def accepts(value: Any, hint: Any) -> bool:
    """Whether `value` is of the declared type; types that cannot be looked at (protocols, `Any`) accept all.

    >>> accepts(1, float), accepts(True, int), accepts("sgd", Literal["sgd", "adam"]), accepts(None, int | None)
    (True, False, True, True)
    """
    origin: Any = get_origin(hint)
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return value is None
    if origin in (Union, types.UnionType):
        return any(accepts(value, one) for one in get_args(hint))
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in get_args(hint))
    if origin is tuple:
        return _accepts_tuple(value, get_args(hint))
    kind: Any = origin or hint
    if kind is float:
        return isinstance(value, Real) and not isinstance(value, bool | np.bool_)
    if kind is int:
        return isinstance(value, Integral) and not isinstance(value, bool | np.bool_)
    if not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return True
    return isinstance(value, kind)


def _accepts_tuple(value: Any, inside: tuple[Any, ...]) -> bool:
    if not isinstance(value, tuple):
        return False
    parts = cast(tuple[Any, ...], value)
    if len(inside) == 2 and inside[1] is Ellipsis:
        return all(accepts(part, inside[0]) for part in parts)
    return len(parts) == len(inside) and all(map(accepts, parts, inside))


def words(hint: Any) -> str:
    """What a value of this type is called in a message.

    >>> words(int | None), words(Literal["sgd", "adam"]), words(tuple[float, float])
    ('a whole number or None', "'sgd' or 'adam'", '(a number, a number)')
    """
    origin: Any = get_origin(hint)
    plain = {int: "a whole number", float: "a number", bool: "True or False", str: "text", type(None): "None"}
    if hint in plain:
        return plain[hint]
    if origin in (Union, types.UnionType):
        return _either([words(one) for one in get_args(hint)])
    if origin is Literal:
        return _either([repr(one) for one in get_args(hint)])
    if origin is tuple:
        inside = get_args(hint)
        if len(inside) == 2 and inside[1] is Ellipsis:
            return f"a tuple of {words(inside[0])}"
        return f"({', '.join(map(words, inside))})"
    kind: Any = origin or hint
    name = str(getattr(kind, "__name__", kind))
    known = {"Callable": "a function", "ndarray": "an array", "Any": "a value"}
    return known.get(name, f"{'an' if name[0] in 'AEIO' else 'a'} {name}")


def _either(names: list[str]) -> str:
    unique = list(dict.fromkeys(names))
    return unique[0] if len(unique) == 1 else f"{', '.join(unique[:-1])} or {unique[-1]}"
