"""Joining a Ray cluster, or starting one here; and what travels there by value, by name, by file.

Here: the shell around the library `ray`. Not here: the workers (ray). Invariant: what is started here listens on
127.0.0.1 alone, reports nothing to anybody, and ends with the program.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import mmap
import os
import secrets
import signal
import socket
import sys
import sysconfig
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from fieldfare.core.errors import MissingExtra, UsageError
from fieldfare.sim.pool import default_workers

STORE_BYTES = 400 << 20
REACH_S = 5.0
"""How long a cluster may take to answer a first call, its name looked up: Ray itself goes on trying for minutes."""
_CLIENT_PORT = 10001
_TOKEN = secrets.token_hex(32)


def ready(on: str) -> str:
    """`on` itself, where what it needs is installed; else `MissingExtra`, before anything is computed."""
    if on != "local" and importlib.util.find_spec("ray") is None:
        raise MissingExtra.of("ray", "ray")
    return on


def library() -> Any:
    """The module `ray`, without its usage statistics."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    return ray


def own_modules() -> list[Any]:
    """The user's own modules, of the job file and beside it: they travel as they are, libraries only by name."""
    from importlib.metadata import packages_distributions

    installed = [Path(path).resolve() for path in set(sysconfig.get_paths().values())]
    known = {"fieldfare", "__main__", *packages_distributions(), *sys.stdlib_module_names}
    found: list[Any] = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not file or name.partition(".")[0] in known or getattr(module, "__name__", None) != name:
            continue
        path = Path(file).resolve()
        if path.suffix == ".py" and not any(path.is_relative_to(place) for place in installed):
            found.append(module)
    return found


def address_of(on: str) -> str | None:
    """The address Ray knows for `on`, with the port its clients use where none is given; None for "ray".

    >>> address_of("ray://head"), address_of("ray://auto"), address_of("ray")
    ('ray://head:10001', 'auto', None)
    """
    where = on.removeprefix("ray").removeprefix("://")
    if where in ("", "auto"):
        return where or None
    return f"ray://{where}" if ":" in where else f"ray://{where}:{_CLIENT_PORT}"


def join(ray: Any, address: str | None, workers: int | None) -> bool:
    """Be part of a cluster; gives whether this call joined it, so that it is to be left again."""
    if ray.is_initialized():
        if address is not None:
            raise UsageError(f"{address}: Ray is initialised in this process already; use on='ray' to compute on it.")
        return False
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address != "local":
        reach(ray, address)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if main else None
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray._private.worker._worker_logs_enabled = False  # else Ray tells of dead workers on standard output
    try:
        if address == "local":
            with _private(ray), warnings.catch_warnings():
                # JAX, if loaded, warns of any fork; what Ray starts here executes another program at once.
                warnings.filterwarnings("ignore", message=".*fork.*")
                ray.init(
                    address="local", num_cpus=workers or default_workers(), include_dashboard=False,
                    object_store_memory=STORE_BYTES, **quiet,
                )  # fmt: skip
        else:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Ray Client connection timed out")  # the error below says it
                ray.init(address=address, **quiet)
    except Exception as error:
        leave(ray)
        raise UsageError(_unreached(f"could be joined at {address!r} ({one_line(error)})")) from error
    finally:
        if main and before is not None:
            signal.signal(signal.SIGTERM, before)  # Ray puts its own there
    return True


def reach(ray: Any, address: str) -> None:
    """Refuse, within seconds, an address at which nobody listens; for "auto" the one Ray kept of its last cluster."""
    found = address
    if address == "auto":
        try:
            found = str(ray._private.services.get_ray_address_from_environment(address, None))
        except ConnectionError:
            raise UsageError(_unreached("runs on this machine ('auto' finds none)")) from None
    named = repr(address) if found == address else f"{address!r}, which is {found}"
    try:
        where = urlsplit(found if "://" in found else f"//{found}")
        host, port = where.hostname, where.port
    except ValueError as error:
        raise UsageError(_unreached(f"can be at {named} ({error})")) from None
    if host is None or port is None or where.scheme not in ("", "ray"):
        return  # one of Ray's own kinds of address, which only it can read
    if why := _refusal(host, port):
        raise UsageError(_unreached(f"answers at {named} ({why})"))


def _refusal(host: str, port: int) -> str:
    """Why nothing listens at `host` and `port`; "" where something does."""
    said = f"no answer within {REACH_S:g} s"

    def call() -> None:
        nonlocal said
        try:
            socket.create_connection((host, port), REACH_S).close()
            said = ""
        except TimeoutError:
            pass
        except OSError as error:
            said = (error.strerror or str(error)).lower()

    calling = threading.Thread(target=call, daemon=True)  # a name may take longer to be looked up than a call may
    calling.start()
    calling.join(REACH_S)
    return said


def _unreached(what: str) -> str:
    return (
        f"no Ray cluster {what}: start one with `ray start --head`, check the address, or use on='ray' for one on "
        "this machine."
    )


def leave(ray: Any) -> None:
    """Leave the cluster that `join` joined, and end it if it was started there."""
    with contextlib.suppress(Exception):
        ray.shutdown()
    ray._private.worker._worker_logs_enabled = True


@contextlib.contextmanager
def _private(ray: Any) -> Iterator[None]:
    """Let a Ray that is started in here listen on 127.0.0.1 alone, and to this program: who reaches it can run code.

    The token is one per process, because Ray reads it once; in the environment, because Ray else keeps it in a file.
    """
    constants = ray._private.ray_constants
    kept = constants.ENABLE_RAY_CLUSTER
    wanted = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # loopback alone, on Linux too
    if not any(name in os.environ for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        wanted["RAY_AUTH_TOKEN"] = _TOKEN
    before = {name: os.environ.get(name) for name in (*wanted, "RAY_AUTH_MODE")}  # Ray sets the mode itself
    os.environ.update(wanted)
    constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = kept
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def mapped_files(ray: Any) -> Iterator[None]:
    """On a cluster of this machine alone, let memory-mapped arrays travel as the names of their files."""
    alone = not ray.util.client.ray.is_connected() and sum(node["Alive"] for node in ray.nodes()) == 1
    if not alone:
        yield
        return
    ray.util.register_serializer(np.memmap, serializer=_place_in_file, deserializer=_from_place)
    try:
        yield
    finally:
        ray.util.deregister_serializer(np.memmap)


def _place_in_file(array: np.memmap[Any, Any]) -> Any:
    """Where in its file an array lies, `(file, dtype, offset, shape)`; its values where it is no plain piece of one."""
    held = getattr(array, "_mmap", None)
    if held is None or array.filename is None or array.mode == "c" or not array.flags.c_contiguous:
        return np.array(array)
    start = np.frombuffer(held, np.uint8).__array_interface__["data"][0]
    inside = array.__array_interface__["data"][0] - start
    offset = inside + array.offset - array.offset % mmap.ALLOCATIONGRANULARITY
    return str(Path(array.filename).resolve()), array.dtype, offset, array.shape


def _from_place(place: Any) -> Any:
    if isinstance(place, np.ndarray):
        return place
    file, dtype, offset, shape = place
    return np.memmap(file, dtype, "r", offset, shape) if np.prod(shape) else np.empty(shape, dtype)


def one_line(error: BaseException) -> str:
    """The most telling line of an error of Ray's, whose texts hold whole logs."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if line.partition(":")[0].endswith("Error")]
    return f"{(named or lines or [type(error).__name__])[-1 if named else 0]:.200}"
