"""A blob sealed for one receiver, which a device can carry and neither read nor alter: X25519 and ChaCha20-Poly1305.

Here: keys, seal, open. Not here: what is sealed (`session`). Invariant: only the holder of the private key opens it;
the same inputs give the same bytes, so that a step done again after a crash says the same.

`cryptography` is an extra, imported when something is sealed. The ephemeral key is derived from the sender's secret
and the message (as in RFC 6979), since a step may not draw from the operating system; it is never used for two
messages.
"""

from __future__ import annotations

import hashlib
import hmac

from fieldfare.core.errors import MissingExtra, PeerError


def public_of(private: bytes) -> bytes:
    """The public key, 32 bytes, of a private one of 32 bytes. Errors: `MissingExtra` without `cryptography`."""
    x25519, _ = _library()
    return x25519.X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def private_of(key: bytes) -> bytes:
    """The private key of a node, 32 bytes, from its ticket key."""
    return hmac.digest(key, b"fieldfare fedfly seal", hashlib.sha256)


def seal(blob: bytes, public: bytes, key: bytes, about: bytes) -> bytes:
    """`blob` for the holder of `public`, 48 bytes longer; `about` is bound to it. `key`: the sender's own secret."""
    x25519, aead = _library()
    seed = hmac.digest(key, b"ephemeral" + public + about + hashlib.sha256(blob).digest(), hashlib.sha256)
    ephemeral = x25519.X25519PrivateKey.from_private_bytes(seed)
    shared = ephemeral.exchange(x25519.X25519PublicKey.from_public_bytes(public))
    mine = ephemeral.public_key().public_bytes_raw()
    return mine + aead(_secret(shared, mine, public)).encrypt(bytes(12), blob, about)


def unseal(sealed: bytes, private: bytes, about: bytes, src: str = "peer") -> bytes:
    """The blob that was sealed for `private` about the same. Errors: `PeerError` for anything else."""
    x25519, aead = _library()
    try:
        own = x25519.X25519PrivateKey.from_private_bytes(private)
        shared = own.exchange(x25519.X25519PublicKey.from_public_bytes(sealed[:32]))
        secret = _secret(shared, sealed[:32], own.public_key().public_bytes_raw())
        return aead(secret).decrypt(bytes(12), sealed[32:], about)
    except Exception:  # the library's own errors are of several unrelated classes
        raise PeerError(src, "sealed session", "it was not sealed for this node, or was altered on the way") from None


def _secret(shared: bytes, ephemeral: bytes, receiver: bytes) -> bytes:
    return hmac.digest(shared, b"fieldfare fedfly" + ephemeral + receiver, hashlib.sha256)


def _library():  # type: ignore[no-untyped-def]
    try:
        from cryptography.hazmat.primitives.asymmetric import x25519
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    except ImportError:
        raise MissingExtra.of("cryptography", "seal") from None
    return x25519, ChaCha20Poly1305
