"""Plain values as a JSON tree and a list of arrays, and back: how the state of a run is written down.

Not here: files (`snapshot`). No pickle, and no class is looked up by import path: only classes of an explicit
registry can come out. Invariants: `decode(encode(x))` equals x in every bit and every type; arrays, bytes and
frozen dataclasses that were shared are shared again, each stored once; decoded arrays are read-only.

The tree: None, bool, str, lists and numbers of 64 bits stand for themselves; every other value is an object with one
key: `t` tuple, `d` dict as pairs, `m` read-only dict, `i` long integer, `f` float that is not finite, `s` text with
lone surrogates, `b` bytes, `a` array, `n` NumPy scalar, `c` dataclass (name, fields), `r` a dataclass met before.
"""

from __future__ import annotations

import struct
import sys
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from math import isfinite
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from fieldfare import __version__
from fieldfare.core import effects, events, folds, local, params, quorum
from fieldfare.core.errors import UsageError

Tree: TypeAlias = Any
Array: TypeAlias = NDArray[Any]

_CORE = (effects, events, folds, local, params, quorum)
_KINDS = "biufcSU"
_LONG = 1 << 63


def _frozen(cls: type) -> bool:
    """Whether `cls` itself is declared a frozen dataclass (a subclass without the decorator is not)."""
    declared: Any = vars(cls).get("__dataclass_params__")
    return declared is not None and bool(declared.frozen)


def _label(cls: type) -> str:
    """The name a class goes by in a file: `core.events.Gathered`, and for a user's class its own name alone.

    So a job file that was run as a program can be resumed as a module.
    """
    own = cls.__qualname__.rpartition("<locals>.")[2]
    package, _, module = cls.__module__.partition(".")
    return f"{module}.{own}" if package == "fieldfare" and module else own


class _Search:
    """Collects frozen dataclasses; every object met is held, so that no id is used twice."""

    def __init__(self) -> None:
        self.found: dict[str, type] = {}
        self.seen: dict[int, Any] = {}

    def add(self, cls: type) -> None:
        name = _label(cls)
        other = self.found.setdefault(name, cls)
        if other is not cls:
            raise UsageError(f"two classes are called {name!r} ({other.__module__}, {cls.__module__}): rename one.")

    def hint(self, hint: Any) -> None:
        if id(hint) in self.seen:
            return
        self.seen[id(hint)] = hint
        for part in typing.get_args(hint):
            self.hint(part)
        if isinstance(hint, type) and _frozen(hint):
            self.add(hint)
            try:
                hints = typing.get_type_hints(hint)
            except (NameError, TypeError, AttributeError):
                return  # annotations that exist for type checkers alone
            for part in hints.values():
                self.hint(part)

    def module(self, module: ModuleType) -> None:
        for cls in list(vars(module).values()):
            if isinstance(cls, type) and cls.__module__ == module.__name__ and _frozen(cls):
                self.hint(cls)

    def value(self, value: Any, root: bool = False) -> None:
        if isinstance(value, ModuleType):
            self.module(value)
        elif isinstance(value, type):
            self.hint(value)
        elif isinstance(value, Mapping):
            for part in cast(Mapping[Any, Any], value).values():
                self.value(part)
        elif isinstance(value, (tuple, list)):
            for part in cast(Iterable[Any], value):
                self.value(part)
        elif id(value) not in self.seen:
            self.seen[id(value)] = value
            own = is_dataclass(value) or root or type(value).__module__.startswith("fieldfare.")
            homes = type(value).__mro__ if own else (value,) if isinstance(value, FunctionType) else ()
            for home in homes:  # a subclass may use the state of the class it derives from
                module = sys.modules.get(str(getattr(home, "__module__", None)))
                if module is not None:
                    self.module(module)
            if is_dataclass(value) and not isinstance(value, type):
                self.hint(type(value))
                for field in fields(value):
                    self.value(getattr(value, field.name, None))
            elif own:
                self.value(dict(getattr(value, "__dict__", {})))


def registry(*roots: Any) -> dict[str, type]:
    """Name -> frozen dataclass: core's, and all that `roots` lead to.

    A root is a class, a module, or an object such as an algorithm. An object brings the classes of the module it
    (or a class it derives from) is defined in, its state among them, and of the objects it holds; a class brings those
    its fields are annotated with.
    Two classes of one name are refused.
    """
    search = _Search()
    for module in _CORE:
        search.module(module)
    for root in roots:
        if isinstance(root, type) and not _frozen(root):
            raise UsageError(f"{root.__name__} cannot be stored: make it a dataclass with frozen=True.")
        search.value(root, root=True)
    return search.found


class Codec:
    """Values of the classes in `types` (see `registry`) to trees and back; refuses all others in one line.

    >>> codec = Codec(registry())
    >>> codec.decode(*codec.encode({("a", 1): (1.5, [None, b"x"])}))
    {('a', 1): (1.5, [None, b'x'])}
    """

    def __init__(self, types: Mapping[str, type] | None = None) -> None:
        self.types = dict(registry() if types is None else types)
        for name, cls in self.types.items():
            if not _frozen(cls):
                raise UsageError(f"{name} cannot be stored: make it a dataclass with frozen=True.")
        self.names = {cls: name for name, cls in self.types.items()}
        if len(self.names) != len(self.types):
            raise UsageError("one class stands twice in the registry under different names: keep one name.")

    def encode(self, value: Any) -> tuple[Tree, list[Array]]:
        """The tree and arrays of `value`; arrays are referred to, not copied. O(number of objects)."""
        writer = _Writer(self.names)
        try:
            return {"version": __version__, "value": writer.tree(value)}, writer.arrays
        except RecursionError:
            raise UsageError(
                "a value that is nested too deeply, or holds itself, cannot be stored: flatten it."
            ) from None

    def decode(self, tree: Tree, arrays: list[Array]) -> Any:
        """The value behind what `encode` gave; anything else is a `UsageError` in one line."""
        if not isinstance(tree, dict) or set(cast(dict[str, Any], tree)) != {"version", "value"}:
            raise UsageError("this is no stored state of a run: the file was written by something else.")
        reader = _Reader(self.types, arrays, str(cast(Any, tree["version"])))
        try:
            return reader.value(tree["value"])
        except RecursionError:
            raise reader.wrong("its values are nested too deeply") from None


class _Writer:
    def __init__(self, names: Mapping[type, str]) -> None:
        self.names = names
        self.arrays: list[Array] = []
        self.places: dict[Any, int] = {}
        self.objects: dict[int, tuple[int, Any]] = {}  # the object is held, so that its id stays its own

    def tree(self, value: Any) -> Tree:
        kind = cast(Any, type(cast(object, value)))
        if value is None or kind is bool:
            return value
        if kind is int:
            return value if -_LONG < value < _LONG else {"i": hex(value)}
        if kind is float:
            return value if isfinite(value) else {"f": struct.pack(">d", value).hex()}
        if kind is str:
            if value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value):
                return value
            return {"s": value.encode("utf-8", "surrogatepass").hex()}
        if kind is list:
            return [self.tree(part) for part in value]
        if kind is tuple:
            return {"t": [self.tree(part) for part in value]}
        if kind is dict:
            return {"d": [[self.tree(self.key(key)), self.tree(part)] for key, part in value.items()]}
        if kind is MappingProxyType:
            return {"m": self.tree(dict(value))}
        if kind is bytes:
            return {"b": self.place(np.frombuffer(value, np.uint8))}
        if kind is np.ndarray:
            return {"a": self.place(value)}
        if isinstance(value, np.generic):
            scalar: Array = np.asarray(cast(Any, value))
            if scalar.dtype.kind in "biufc":
                return {"n": [scalar.dtype.str, scalar.tobytes().hex()]}
        if kind in self.names:
            return self.object(value, self.names[kind])
        raise UsageError(_cannot(value))

    def key(self, key: Any) -> Any:
        kind = cast(Any, type(cast(object, key)))
        if kind is str or kind is int:
            return key
        if kind is tuple:
            for part in key:
                self.key(part)
            return key
        raise UsageError(f"a dict with key {key!r} cannot be stored: use keys of str, int or tuples of these.")

    def object(self, value: Any, name: str) -> Tree:
        if id(value) in self.objects:
            return {"r": self.objects[id(value)][0]}
        inside = {f.name: self.tree(getattr(value, f.name)) for f in fields(value) if f.init}
        self.objects[id(value)] = (len(self.objects), value)
        return {"c": [name, inside]}

    def place(self, array: Array) -> int:
        if array.dtype.kind not in _KINDS or array.dtype.itemsize == 0:
            raise UsageError(
                f"an array of dtype {array.dtype} cannot be stored: use numbers, bools or fixed-width text."
            )
        where = (array.__array_interface__["data"][0], array.dtype.str, array.shape, array.strides)
        key = where if array.size else (array.dtype.str, array.shape)
        if key not in self.places:
            self.places[key] = len(self.arrays)
            self.arrays.append(array)
        return self.places[key]


def _cannot(value: Any) -> str:
    name = type(value).__qualname__
    if isinstance(value, (set, frozenset)):
        return "a set cannot be stored, for its order is not kept: use a sorted tuple or an array."
    if isinstance(value, type) or (callable(value) and not is_dataclass(value)):
        called = getattr(value, "__qualname__", name)
        return f"the function or class {called} cannot be stored: keep its name and parameters in a frozen dataclass."
    if is_dataclass(value):
        return f"{name} is not known to this run's store: pass it to registry(...), as a frozen dataclass."
    return (
        f"a value of type {name} cannot be stored: use numbers, text, bytes, tuples, lists, dicts, arrays, dataclasses."
    )


class _Reader:
    def __init__(self, types: Mapping[str, type], arrays: list[Array], version: str) -> None:
        self.types = types
        self.version = version
        self.arrays = list(map(_locked, arrays))
        self.objects: list[Any] = []
        self.texts: dict[int, bytes] = {}

    def wrong(self, what: str) -> UsageError:
        return UsageError(
            f"this run folder was written by version {self.version} of fieldfare and cannot be read by {__version__}: "
            f"{what}; use that version, or start the run anew."
        )

    def value(self, tree: Tree) -> Any:
        if tree is None or isinstance(tree, (bool, int, float, str)):
            return tree
        if isinstance(tree, list):
            return [self.value(part) for part in cast(list[Any], tree)]
        if isinstance(tree, dict) and len(cast(dict[str, Any], tree)) == 1:
            ((kind, inside),) = cast(dict[str, Any], tree).items()
            try:
                return self.tagged(kind, inside)
            except UsageError:
                raise
            except (TypeError, ValueError, IndexError, KeyError, AttributeError, struct.error) as error:
                raise self.wrong(f"a value of kind {kind!r} is malformed ({error})") from None
        raise self.wrong("its values are malformed")

    def tagged(self, kind: str, inside: Any) -> Any:
        match kind:
            case "t":
                return tuple([self.value(part) for part in inside])
            case "d":
                return {self.value(key): self.value(part) for key, part in inside}
            case "m":
                return MappingProxyType(self.value(inside))
            case "a":
                return self.arrays[self.index(inside, len(self.arrays))]
            case "c":
                name, stored = inside
                return self.object(name, stored)
            case "r":
                return self.objects[self.index(inside, len(self.objects))]
            case "b":
                at = self.index(inside, len(self.arrays))
                if at not in self.texts:
                    self.texts[at] = self.arrays[at].tobytes()
                return self.texts[at]
            case "i":
                return int(inside, 16)
            case "f":
                return struct.unpack(">d", bytes.fromhex(inside))[0]
            case "s":
                return bytes.fromhex(inside).decode("utf-8", "surrogatepass")
            case "n":
                name, digits = inside
                dtype = np.dtype(str(name))
                if dtype.kind not in "biufc":
                    raise self.wrong(f"it holds a number of dtype {name}")
                return np.frombuffer(bytes.fromhex(digits), dtype, 1)[0]
            case _:
                raise self.wrong(f"it holds a value of unknown kind {kind!r}")

    def index(self, at: Any, count: int) -> int:
        if type(at) is not int or not 0 <= at < count:
            raise self.wrong(f"it refers to part {at!r} of {count}")
        return at

    def object(self, name: str, stored: Mapping[str, Tree]) -> Any:
        cls = self.types.get(name)
        if cls is None:
            raise self.wrong(f"it holds a {name}, which this job does not know")
        known = {field.name for field in fields(cls) if field.init}
        if missing := sorted(known - set(stored)):
            raise self.wrong(f"its {name} has no field {', '.join(missing)}")
        if extra := sorted(set(stored) - known):
            raise self.wrong(f"its {name} has a field {', '.join(extra)} that is unknown here")
        inside = {field: self.value(part) for field, part in stored.items()}
        try:
            value = cls(**inside)
        except (TypeError, ValueError) as error:
            raise self.wrong(f"its {name} is refused ({error})") from None
        self.objects.append(value)
        return value


def _locked(array: Array) -> Array:
    if array.flags.writeable:
        array = array.view()
        array.flags.writeable = False
    return array
