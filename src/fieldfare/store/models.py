"""Models as safetensors files: ours with order, side arrays and opaque bytes kept, and those of other libraries.

Not here: views of a model for an ML library (work). Invariant: `read_model(write_model(p))` equals p in every bit,
and the same model makes the same file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import UsageError
from fieldfare.core.params import Layout, Params
from fieldfare.store.files import write_atomic

FORMAT = "1"

_SIDE, _OPAQUE = "side:", "opaque:"
_FLOATS = {"F64", "F32", "F16", "BF16"}
_DTYPES = {np.dtype(name) for name in ("?", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8")}

Array = NDArray[Any]


def write_model(path: str | Path, model: Params) -> None:
    """Write `model` as safetensors, whole or not at all; a copy of the model is held meanwhile.

    Tensors carry their own names; side arrays stand under `side:NAME`, opaque bytes as uint8 under `opaque:`.
    """
    from safetensors.numpy import save

    tensors: dict[str, Array] = dict(model.tensors())
    for name in tensors:
        if name == "__metadata__" or name.startswith((_SIDE, _OPAQUE)):
            raise UsageError(f"a parameter called {name!r} cannot be written as safetensors: rename it.")
    for name, side in model.sides.items():
        native = np.array(side, dtype=side.dtype.newbyteorder("="), order="C")
        if native.dtype not in _DTYPES:
            raise UsageError(
                f"the side array {name!r} is {side.dtype}, which safetensors cannot hold: use a plain one."
            )
        tensors[_SIDE + name] = native
    if model.opaque:
        tensors[_OPAQUE] = np.frombuffer(model.opaque, np.uint8)
    metadata = {
        "fieldfare": FORMAT,
        "names": json.dumps(model.layout.names),
        "sides": json.dumps(list(model.sides)),
    }
    write_atomic(Path(path), _ordered(save(tensors, metadata)))


def _ordered(file: bytes) -> list[bytes | memoryview]:
    """The same file with its metadata in order of name: the library writes them in an order that changes."""
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, memoryview(file)[end:]]


def read_model(path: str | Path, layout: Layout | None = None) -> Params:
    """The model in a safetensors file, of ours or from elsewhere.

    With a `layout` the file must hold its tensors, by name and shape, as float32 or floats that are converted to it
    (float64 is rounded); integer and bool tensors beyond become side arrays, other ones are refused. Without one, the
    order is the one recorded, else that of the file.
    """
    path = Path(path)
    found, metadata = _load(path)
    opaque = found.pop(_OPAQUE)[1].tobytes() if _OPAQUE in found else b""
    recorded = _recorded(path, metadata)
    sides: dict[str, Array] = {}
    if recorded is not None:
        for name in recorded[1]:
            if _SIDE + name not in found:
                raise UsageError(f"{path} lacks the side array {name!r} it announces: the file was altered.")
            sides[name] = found.pop(_SIDE + name)[1]
    if layout is None:
        names = recorded[0] if recorded else [name for name, (kind, _) in found.items() if kind in _FLOATS]
        missing = [name for name in names if name not in found]
        if missing:
            raise UsageError(f"{path} lacks the tensor {missing[0]!r} it announces: the file was altered.")
        layout = Layout.of({name: found[name][1].shape for name in names})
    vector = np.empty(layout.size, np.float32)
    for name, where, shape in layout.items():
        if name not in found:
            raise UsageError(f"{path} has no tensor {name!r}, which the model needs: it has {_few(found)}.")
        kind, tensor = found.pop(name)
        if tensor.shape != shape:
            raise UsageError(f"{path}: tensor {name!r} has shape {tensor.shape}, the model wants {shape}.")
        if kind not in _FLOATS:
            raise UsageError(f"{path}: tensor {name!r} is {kind}, the model wants floats: convert it first.")
        vector[where] = tensor.reshape(-1)
    if extra := [name for name, (kind, _) in found.items() if kind in _FLOATS]:
        raise UsageError(f"{path} has tensors the model does not: {_few(extra)}; remove them or change the model.")
    sides |= {name: tensor for name, (_, tensor) in found.items()}
    return Params(vector, layout, sides, opaque)


def _few(names: Mapping[str, Any] | list[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:6]) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")


def _recorded(path: Path, metadata: Mapping[str, str]) -> tuple[list[str], list[str]] | None:
    """Names of tensors and sides in order, when we wrote the file."""
    if "fieldfare" not in metadata:
        return None
    if metadata["fieldfare"] != FORMAT:
        raise UsageError(f"{path} has model format {metadata['fieldfare']}, this fieldfare reads {FORMAT}: update it.")
    try:
        return list(map(str, json.loads(metadata["names"]))), list(map(str, json.loads(metadata["sides"])))
    except (KeyError, ValueError, TypeError):
        raise UsageError(f"{path} has broken metadata: the file was altered.") from None


def _load(path: Path) -> tuple[dict[str, tuple[str, Array]], dict[str, str]]:
    """{name: (safetensors dtype, array)} in the order of the file, and its metadata; all checked by the library."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UsageError(f"there is no model file {path}.")
    found: dict[str, tuple[str, Array]] = {}
    try:
        opened: Any = safe_open(str(path), framework="numpy")
        with opened as file:
            metadata: dict[str, str] = dict(file.metadata() or {})
            for name in getattr(file, "offset_keys", file.keys)():  # older versions know no order
                kind = str(file.get_slice(name).get_dtype())
                if kind == "BF16":
                    found[name] = (kind, _bfloat16(path, name))
                else:
                    found[name] = (kind, np.asarray(file.get_tensor(name)))
    except (SafetensorError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is no safetensors file that can be read here ({error}).") from None
    return found, metadata


def _bfloat16(path: Path, name: str) -> Array:
    """A bfloat16 tensor as float32, exactly: NumPy has no such type, its bits are the upper half of a float32."""
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
        entry: dict[str, Any] = json.loads(file.read(header))[name]
        start, stop = entry["data_offsets"]
        file.seek(8 + header + start)
        halves = np.frombuffer(file.read(stop - start), "<u2")
    return (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
