"""Named tensors as bytes, and back: the only form in which the state of a session crosses from node to node.

Here: dtype, shape and bytes of each tensor under a schema version and a checksum; lossless differences from a reference
both sides hold; fp16 and int8 rows, which lose. Not here: which tensors (`session`). Invariants: without a lossy
coding `decode(encode(x, ref), ref)` equals x in every bit; bytes that were altered, cut or made up are a `PeerError`,
and never make the reader allocate more than `cap_bytes`. No class is looked up, nothing is run.

A blob: magic, schema u16, number of tensors u16, digest of the reference (16 bytes, zero: none), the tensors, a
checksum (BLAKE2b, 16 bytes). A tensor: name u8 + text, dtype u8, coding u8, dimensions u8, u32 each, u64 bytes, bytes.
"""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fieldfare.core.errors import PeerError, UsageError

Array = NDArray[Any]
Tensors = Mapping[str, Array]
Lossy = Literal["none", "fp16", "int8"]

SCHEMA = 1
CAP_BYTES = 1 << 31
_MAGIC = b"FFTN"
_HEAD = struct.Struct("<4sHH16s")
_NONE = bytes(16)
_DTYPES = ("<f4", "<f8", "<i8", "<i4", "<u8", "|u1", "|b1", "<f2")
_RAW, _PACKED, _DELTA, _HALF, _BYTE = range(5)
_LARGEST = 65504.0
_GROUP = 256
"""Numbers that share one scale in an int8 row."""


def digest(tensors: Tensors) -> bytes:
    """16 bytes that depend on every name, dtype, shape and bit of `tensors`, in any order."""
    out = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        value = tensors[name]
        out.update(f"{name};{value.dtype.str};{value.shape};".encode())
        out.update(np.ascontiguousarray(value).tobytes())
    return out.digest()


def encode(tensors: Tensors, reference: Tensors | None = None, lossy: Lossy = "none", level: int = 1) -> bytes:
    """`tensors` as bytes; against a `reference` only what differs costs much. O(bytes), zlib at `level` (0: as it is).

    A float tensor that `reference` has in the same shape goes as the difference of the two bit patterns, taken as
    integers (ours): numbers that are close share sign, exponent and leading digits, so the upper bytes of the
    difference are alike, and byte planes compress. `lossy`: float32 of one dimension as float16, or as int8 with a
    scale per 256 numbers, of the difference from the reference where there is one; what is beyond float16 stays whole.

    >>> x = {"w": np.float32([1.5, -2.0])}
    >>> decode(encode(x))["w"].tolist()
    [1.5, -2.0]
    """
    if len(tensors) >= 1 << 16:
        raise UsageError(f"encode: {len(tensors)} tensors; a blob holds fewer than 65536.")
    head = _HEAD.pack(_MAGIC, SCHEMA, len(tensors), _NONE if reference is None else digest(reference))
    parts = [head]
    for name, value in tensors.items():
        other = None if reference is None else reference.get(name)
        parts += _write(name, np.asarray(value), other, lossy, level)
    body = b"".join(parts)
    return body + hashlib.blake2b(body, digest_size=16).digest()


def _write(name: str, value: Array, other: Array | None, lossy: Lossy, level: int) -> list[bytes]:
    dtype = value.dtype.newbyteorder("<").str
    text = name.encode()
    if dtype not in _DTYPES or len(text) > 255 or value.ndim > 8:
        raise UsageError(
            f"tensor {name!r} of dtype {value.dtype}, {value.ndim} dimensions cannot be sent: use float16/32/64, "
            "int32/64, uint8/64 or bool, at most 8 dimensions."
        )
    value = np.ascontiguousarray(value.astype(dtype, copy=False)).reshape(value.shape)
    near = other if other is not None and (other.shape, other.dtype) == (value.shape, value.dtype) else None
    if lossy != "none" and dtype == "<f4" and value.ndim == 1 and value.size and _fits(value, near):
        coding, payload = _lose(value, near, lossy)
    else:
        coding, payload = _RAW, value.tobytes()
        if len(payload) > 64 and level:
            planes = _planes(_difference(value, near) if near is not None else value)
            packed = zlib.compress(planes, level)
            if len(packed) < len(payload):
                coding, payload = (_PACKED if near is None else _DELTA), packed
    shape = struct.pack(f"<{value.ndim}I", *value.shape)
    head = struct.pack("<B", len(text)) + text
    head += struct.pack("<BBB", _DTYPES.index(dtype), coding, value.ndim) + shape + struct.pack("<Q", len(payload))
    return [head, payload]


def decode(
    blob: bytes, reference: Tensors | None = None, cap_bytes: int = CAP_BYTES, src: str = "peer"
) -> dict[str, Array]:
    """The tensors behind `blob`, read-only, float32 where a lossy coding was used.

    `reference`: what `encode` was given; another, or none where one is needed, is refused. `cap_bytes`: the most the
    blob and all its tensors may take. Errors: `PeerError` naming `src`, in one line.
    """

    def wrong(reason: str) -> PeerError:
        return PeerError(src, "tensors", reason)

    if not _HEAD.size + 16 <= len(blob) <= cap_bytes:
        raise wrong(f"a blob of {len(blob)} bytes; {_HEAD.size + 16} to {cap_bytes} are taken")
    if hashlib.blake2b(blob[:-16], digest_size=16).digest() != blob[-16:]:
        raise wrong("the checksum does not fit: bytes were altered on the way")
    magic, schema, count, wanted = _HEAD.unpack_from(blob)
    if magic != _MAGIC or schema != SCHEMA:
        raise wrong(f"no tensors of schema {SCHEMA} (magic {magic!r}, schema {schema})")
    if wanted != _NONE and (reference is None or digest(reference) != wanted):
        raise wrong(f"it is a difference from a state this node does not hold ({wanted.hex()})")
    reader = _Reader(blob[:-16], cap_bytes)
    out: dict[str, Array] = {}
    try:
        for _ in range(count):
            name, value = reader.tensor(reference if wanted != _NONE else None)
            if name in out:
                raise ValueError(f"tensor {name!r} stands there twice")
            out[name] = value
        if reader.at != len(blob) - 16:
            raise ValueError("bytes behind the last tensor")
    except (ValueError, struct.error, zlib.error, UnicodeDecodeError, IndexError) as error:
        raise wrong(str(error)) from None
    return out


def reference_of(blob: bytes) -> bytes | None:
    """Digest of the reference a blob wants; None: it stands for itself. O(1), nothing is checked."""
    if len(blob) < _HEAD.size:
        return None
    wanted = _HEAD.unpack_from(blob)[3]
    return None if wanted == _NONE else wanted


class _Reader:
    """Reads tensors off `blob`, each length checked before it is used."""

    def __init__(self, blob: bytes, cap_bytes: int) -> None:
        self.blob, self.at, self.left = blob, _HEAD.size, cap_bytes

    def take(self, size: int) -> bytes:
        if size > len(self.blob) - self.at:
            raise ValueError(f"{size} bytes wanted, {len(self.blob) - self.at} are left")
        self.at += size
        return self.blob[self.at - size : self.at]

    def tensor(self, reference: Tensors | None) -> tuple[str, Array]:
        name = self.take(self.take(1)[0]).decode()
        kind, coding, ndim = self.take(3)
        shape = struct.unpack(f"<{ndim}I", self.take(4 * ndim)) if ndim <= 8 else ()
        (size,) = struct.unpack("<Q", self.take(8))
        if ndim > 8 or kind >= len(_DTYPES):
            raise ValueError(f"tensor {name!r} is of unknown dtype {kind} or of {ndim} dimensions")
        dtype, count = np.dtype(_DTYPES[kind]), math.prod(shape)
        self.left -= count * dtype.itemsize
        if self.left < 0:
            raise ValueError(f"tensor {name!r} of shape {shape} is larger than this node takes")
        payload = self.take(size)
        other = None if reference is None else reference.get(name)
        if other is not None and (other.shape, other.dtype) != (shape, dtype):
            other = None
        value = _read(payload, coding, dtype, count, other).reshape(shape)
        value.flags.writeable = False
        return name, value


def _read(payload: bytes, coding: int, dtype: np.dtype[Any], count: int, other: Array | None) -> Array:
    size = count * dtype.itemsize
    if not size and (coding or payload):
        raise ValueError(f"{len(payload)} bytes, in coding {coding}, of a tensor without numbers")
    match coding:
        case 0:
            if len(payload) != size:
                raise ValueError(f"{len(payload)} bytes for {count} numbers of {dtype}")
            return np.frombuffer(payload, dtype).copy()
        case 1 | 2:
            if coding == _DELTA and other is None:
                raise ValueError("a difference from a tensor this node does not hold")
            inflate = zlib.decompressobj()
            planes = inflate.decompress(payload, size)
            if len(planes) != size or (not inflate.eof and inflate.decompress(inflate.unconsumed_tail, 1)):
                raise ValueError(f"a compressed tensor does not hold {size} bytes")
            rows = np.frombuffer(planes, np.uint8).reshape(dtype.itemsize, count).T
            value = np.ascontiguousarray(rows).reshape(-1).view(dtype)
            return value if other is None or coding == _PACKED else _apply(value, other)
        case 3 | 4:
            if dtype != np.dtype("<f4"):
                raise ValueError("a lossy coding of something else than float32")
            return _found(payload, coding, count, other)
        case _:
            raise ValueError(f"unknown coding {coding}")


def _planes(value: Array) -> bytes:
    """The bytes of all numbers, lowest byte of each first."""
    flat = np.frombuffer(value.tobytes(), np.uint8).reshape(-1, value.dtype.itemsize)
    return np.ascontiguousarray(flat.T).tobytes()


def _difference(value: Array, other: Array) -> Array:
    """Bit patterns of `value` minus those of `other`, zigzag, as unsigned integers of the same width."""
    width = value.dtype.itemsize
    if width < 4:
        return np.bitwise_xor(value.reshape(-1).view(f"<u{width}"), other.reshape(-1).view(f"<u{width}"))
    step = value.reshape(-1).view(f"<u{width}") - other.reshape(-1).view(f"<u{width}")
    sign = (step.view(f"<i{width}") >> (8 * width - 1)).view(f"<u{width}")
    return (step << step.dtype.type(1)) ^ sign


def _apply(zigzag: Array, other: Array) -> Array:
    """The inverse of `_difference`."""
    dtype, width = zigzag.dtype, zigzag.dtype.itemsize
    bits, base = zigzag.view(f"<u{width}"), np.ascontiguousarray(other).reshape(-1).view(f"<u{width}")
    if width < 4:
        return np.bitwise_xor(bits, base).view(dtype)
    one = bits.dtype.type(1)
    step = (bits >> one) ^ (~(bits & one) + one)
    return (step + base).view(dtype)


def _fits(value: Array, near: Array | None) -> bool:
    """Whether a difference can be rounded: all of it finite, and below the largest float16."""
    with np.errstate(over="ignore", invalid="ignore"):
        rest = value if near is None else value - near
    return bool((np.abs(rest) <= _LARGEST).all())


def _lose(value: Array, near: Array | None, lossy: Lossy) -> tuple[int, bytes]:
    rest = value if near is None else value - near
    if lossy == "fp16":
        return _HALF, rest.astype("<f2").tobytes()
    groups = np.zeros(-(-rest.size // _GROUP) * _GROUP, np.float32)
    groups[: rest.size] = rest
    groups = groups.reshape(-1, _GROUP)
    scale = (np.abs(groups).max(axis=1) / np.float32(127)).astype("<f4")
    safe = np.where(scale > 0, scale, np.float32(1))
    whole = np.rint(groups / safe[:, None]).astype(np.int8).reshape(-1)[: rest.size]
    return _BYTE, scale.tobytes() + whole.tobytes()


def _found(payload: bytes, coding: int, count: int, other: Array | None) -> Array:
    base = np.zeros(count, np.float32) if other is None else other.reshape(-1)
    if coding == _HALF:
        if len(payload) != 2 * count:
            raise ValueError(f"{len(payload)} bytes for {count} float16")
        return base + np.frombuffer(payload, "<f2").astype(np.float32)
    groups = -(-count // _GROUP)
    if len(payload) != 4 * groups + count:
        raise ValueError(f"{len(payload)} bytes for {count} int8 and {groups} scales")
    scale = np.repeat(np.frombuffer(payload, "<f4", groups), _GROUP)[:count]
    return base + scale * np.frombuffer(payload, np.int8, count, 4 * groups).astype(np.float32)
