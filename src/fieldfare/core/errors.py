"""The two families of errors a user can meet, and how each is worded.

Invariant: a message is one line that says what was given, what would be right, and what to do.
"""

from __future__ import annotations


class UsageError(ValueError):
    """You called us wrongly: the job, the data or an argument must change."""


class MissingExtra(UsageError):
    """A library that is not part of the small core is needed and absent."""

    @classmethod
    def of(cls, library: str, extra: str) -> MissingExtra:
        """The error for an absent `library`, naming the extra that brings it."""
        return cls(f"{library} is not installed: it is needed here; run pip install 'fieldfare[{extra}]'.")


class PeerError(RuntimeError):
    """They sent something wrong: names the client (or node), the round's tag and the reason."""

    def __init__(self, client: object, tag: object, reason: str) -> None:
        super().__init__(f"client {client}, {tag}: {reason}")
        self.client = client
        self.tag = tag
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.client, self.tag, self.reason), self.__dict__
