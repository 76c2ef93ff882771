"""Errors that say that memory could not be had, from NumPy, torch's allocator and oneDNN, in our words.

Here: which errors these are, and the refusal. Not here: how much is needed (`work.submodel.cost`). Invariant: an error
that is not for want of memory is never taken for one.
"""

from __future__ import annotations

import re

from fieldfare.core.errors import UsageError

_WORDS = (
    "can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory", "defaultcpuallocator",
    "alloc_cpu", "bad_alloc", "failed to allocate", "unable to allocate", "could not create a primitive",
    "could not execute a primitive",
)  # fmt: skip


def wants_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(words in said for words in _WORDS)


def too_little_memory(error: BaseException, what: str) -> UsageError:
    """The refusal, with how many bytes were asked for where the error tells.

    >>> too_little_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 80 bytes."),
    ...                   "to train client 3")
    UsageError('there is not enough memory to train client 3 (80 bytes more were asked for): use a smaller batch_size, fewer workers, or a smaller model; `fieldfare fit` says what each level of one takes.')
    """  # noqa: E501
    bytes_ = re.search(r"tried to allocate (\d+) bytes", str(error))
    more = f" ({bytes_[1]} bytes more were asked for)" if bytes_ else ""
    return UsageError(
        f"there is not enough memory {what}{more}: use a smaller batch_size, fewer workers, or a smaller model; "
        "`fieldfare fit` says what each level of one takes."
    )
