"""Settings changed from outside, by dotted path: what the command line's `--set` and `Job.with_overrides` do.

Here: where a setting stands, and what a text means there. Not here: what a value may be, which its class checks.
Invariant: what is overridden is left as it was; an algorithm that a function such as `FedAdam` made is made anew by it,
so that it is what the job file would have made with that argument.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args, get_origin

from fieldfare.core.errors import UsageError
from fieldfare.core.recipe import recipe_of
from fieldfare.core.settings import accepts, hints_of, needed, unknown_key

SHORT = {
    "rounds": "algorithm.rounds",
    "cycles": "algorithm.cycles",
    "cohort": "algorithm.cohort",
    "lr": "training.lr",
    "workers": "simulated.workers",
    "on": "simulated.on",
}
"""Settings of a job that have a short name."""


def override(target: Any, path: Sequence[str], value: Any, whole: str) -> Any:
    """`target` with the setting at `path` changed to `value`; `whole` is what errors call it."""
    head, *rest = path
    if isinstance(target, tuple) and head.isdigit() and int(head) < len(target) and rest:
        parts = list(target)
        parts[int(head)] = override(parts[int(head)], rest, value, whole)
        return tuple(parts)
    if not dataclasses.is_dataclass(target) or isinstance(target, type):
        raise UsageError(f"{whole!r}: {type(target).__name__} has no settings to override.")
    names = [f.name for f in dataclasses.fields(target) if f.init]
    recipe = recipe_of(target)
    if recipe is not None:
        if head in recipe.takes:
            old = recipe.arguments.get(head, getattr(target, head, None))
            return recipe.again(**{head: _changed(recipe.make, head, old, rest, value, whole)})
        for name, part in recipe.arguments.items():
            if hasattr(part, "step"):  # made of another algorithm, which has the setting or has it not
                return recipe.again(**{name: override(part, path, value, whole)})
        names = list(dict.fromkeys((*recipe.takes, *names)))
    if head not in names and "inner" in names:
        return replace(target, inner=override(target.inner, path, value, whole))
    if head not in names:
        inside = _inside(target, head)
        if len(inside) != 1:
            raise UsageError(unknown_key(head, names, repr(whole)))
        return override(target, [*inside[0], *rest], value, whole)
    return replace(target, **{head: _changed(type(target), head, getattr(target, head), rest, value, whole)})


def _changed(owner: Any, name: str, old: Any, rest: Sequence[str], value: Any, whole: str) -> Any:
    """The new value of setting `name`, or of what stands at `rest` in it, where it is `old` now."""
    if not rest:
        return _typed(owner, name, old, value, whole)
    return override(_default_of(hints_of(owner).get(name), whole) if old is None else old, rest, value, whole)


def _inside(target: Any, name: str, path: tuple[str, ...] = ()) -> list[list[str]]:
    """Where a setting called `name` stands in the parts of `target` (`mu` of FedProx: `local.0.mu`); not of a job."""
    if isinstance(target, tuple):
        parts = [(str(i), part) for i, part in enumerate(target)]
    elif dataclasses.is_dataclass(target) and not isinstance(target, type) and not hasattr(target, "with_overrides"):
        fields = [f.name for f in dataclasses.fields(target) if f.init]
        if path and name in fields:
            return [[*path, name]]
        parts = [(field, getattr(target, field)) for field in fields]
    else:
        return []
    return [found for key, part in parts for found in _inside(part, name, (*path, key))]


def _default_of(hint: Any, whole: str) -> Any:
    """A setting that is None now, as its own class makes it without arguments (`stop_at.at_least=0.9`)."""
    for one in get_args(hint):
        if dataclasses.is_dataclass(one) and isinstance(one, type):
            return one()
    raise UsageError(f"{whole!r}: what it belongs to is None here; give it in the job file first.")


def _typed(owner: Any, name: str, old: Any, value: Any, whole: str) -> Any:
    """A command line's text as the type that setting `name` of `owner` is declared to have."""
    if not isinstance(value, str):
        return value
    hint = hints_of(owner).get(name, Any)
    if hint is Any:
        if old is None or isinstance(old, str):
            return value
        raise UsageError(f"{whole}={value!r}: {name} is no text or number; change it in the job file.")
    text = value.strip()
    if get_origin(hint) is Sequence:  # one alone is a list of one
        (kind,) = get_args(hint)
        return tuple(next((one for one in (*_read(part), part) if accepts(one, kind)), part) for part in _parts(text))
    for found in (*_read(text), text):
        if accepts(found, hint):
            return found
    raise UsageError(f"{whole}={value!r}: use {needed(owner, name)} (now {old!r}).")


def _read(text: str) -> list[Any]:
    """What a piece of text may mean, most special first: None, a truth value, numbers, what stands between commas."""
    known = {"none": None, "null": None, "true": True, "false": False}
    if text.lower() in known:
        return [known[text.lower()]]
    found: list[Any] = []
    for kind in (int, float):
        try:
            found.append(kind(text))
        except ValueError:
            continue
    if "," in text:
        found.append(tuple((*_read(part), part)[0] for part in _parts(text)))
    return found


def meant(text: str) -> Any:
    """What a text means where nothing says what it should be: the most special reading, else the text itself.

    >>> meant("none"), meant("60"), meant("1e-3"), meant("head")
    (None, 60, 0.001, 'head')
    """
    text = text.strip()
    return (*_read(text), text)[0]


def _parts(text: str) -> list[str]:
    """What stands between the commas of a text, in brackets or not.

    >>> _parts("(0.9, 1)"), _parts("head")
    (['0.9', '1'], ['head'])
    """
    return [part.strip() for part in text.strip("()[] ").split(",") if part.strip()]
