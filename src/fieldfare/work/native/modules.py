"""Which compiled core trains: the best that this processor can run, the one `FIELDFARE_NATIVE` names, or none and why.

Here: choosing and loading. Not here: what it computes (`fit`), whether it is the fastest path for a net (`choose`).
Invariant: nothing is loaded before it is asked for, and never a core with instructions that this processor lacks.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

from fieldfare.core.errors import UsageError

VARIABLE = "FIELDFARE_NATIVE"
"""The environment variable that names the core to use; empty: the best one."""
KINDS = ("avx512", "avx2", "plain")
"""The cores, one extension module each, the fastest first; beside x86-64 there is "plain" alone."""

INTERFACE = 4
"""To be counted up when a core is called otherwise than before; CMakeLists.txt compiles it into the cores."""

_WITHOUT = (
    "there is no compiled core (fieldfare was installed where it could not be built, or with FIELDFARE_NO_NATIVE)"
)
_HOW = "install a wheel, or a C++ compiler and Python's headers, and then fieldfare again"


@dataclass(frozen=True, slots=True)
class Found:
    """A core, and of which kind it is; or no core, and why."""

    module: ModuleType | None = None
    kind: str | None = None
    why_not: str | None = None


def core() -> Any | None:
    """The extension module that trains, loaded when first asked for; None where there is none (see `why_not`).

    Errors: `UsageError` if FIELDFARE_NATIVE is no word of ours, or names a core that is not there.
    """
    return _asked().module


def kind() -> str | None:
    """Which core it is: "avx512", "avx2" or "plain"; None where there is none."""
    return _asked().kind


def why_not() -> str | None:
    """Why `core()` is None, in one sentence without a full stop; None where there is a core."""
    return _asked().why_not


def notice() -> str | None:
    """What a person should be told once: that there is no core, and that training is slower for it.

    None when it has been told in this process, when there is a core, and when it was switched off on purpose.
    """
    found = _asked()
    if found.why_not is None or _word() == "off" or _TOLD:
        return None
    _TOLD.append(found.why_not)
    return f"training takes the slower path, of NumPy or torch: {found.why_not}; {_HOW}, or set {VARIABLE}=off."


_TOLD: list[str] = []


def _word() -> str:
    return os.environ.get(VARIABLE, "").strip().lower()


def _asked() -> Found:
    return _found(_word())


@lru_cache
def _found(word: str) -> Found:
    if word == "off":
        return Found(why_not=f"the compiled core is switched off ({VARIABLE}=off)")
    if word not in ("", *KINDS):
        raise UsageError(f"{VARIABLE}={word!r} is no compiled core: set it to {', '.join(KINDS)} or off, or unset it.")
    plain, said = _load("plain")
    if plain is None:
        if word:
            raise UsageError(f"{VARIABLE}={word}: {said or _WITHOUT}: {_HOW}, or unset it.")
        return Found(why_not=said or _WITHOUT)
    runs = ("plain", *plain.features())
    if not word:
        for kind in KINDS:
            module = _load(kind)[0] if kind in runs else None
            if module is not None:
                return Found(module, kind)
    if word not in runs:
        choices = ", ".join(kind for kind in KINDS if kind in runs)
        raise UsageError(f"{VARIABLE}={word}: this processor does not have {word}; set it to {choices} or off.")
    module, said = _load(word)
    if module is None:
        raise UsageError(f"{VARIABLE}={word}: {said or f'the core _{word} is not built'}: {_HOW}, or unset it.")
    return Found(module, word)


def _load(kind: str) -> tuple[Any | None, str | None]:
    """A core; or None, and what hinders it from being loaded (None: it is not there at all)."""
    name = f"{__package__}._{kind}"
    try:
        module: Any = importlib.import_module(name)
        if getattr(module, "interface", None) != INTERFACE:
            return (
                None,
                f"the compiled core _{kind} was built from older sources than these (in a checkout: scripts/native)",
            )
        return module, None
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            return None, None
        return None, f"the compiled core _{kind} cannot be loaded ({' '.join(str(error).split())})"
