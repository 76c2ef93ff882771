"""A module as a chain of operations: in which order its tensors are used, and where one tensor alone crosses.

Here: tracing (torch.fx, else torch.export), execution order, the places where a cut is legal, the module of a range of
operations. Not here: costs (`cuts`), storage and arithmetic (`half`). Invariant: the operations of the ranges before
and behind a place are those of the whole, in its order; what training changes is used on one side alone.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fieldfare.core.errors import UsageError
from fieldfare.core.params import Layout

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import GraphModule, Node

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Buffers that training changes, in the vector beside the parameters of their layer."""


@dataclass(frozen=True, slots=True)
class Place:
    """Behind operation `at`, where the value of operation `value` alone is still needed.

    `size`: numbers of the vector used up to here. `name`: the last module before it.
    """

    at: int
    value: int
    size: int
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Traced:
    """A module as operations in order, and the layout of its tensors in the order of their first use.

    `layout`: trained parameters and running statistics. `uses`: numbers of tensors in the layout, by operation.
    """

    graph: GraphModule
    nodes: tuple[Node, ...]
    layout: Layout
    uses: tuple[tuple[int, ...], ...]
    by: str

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the running statistics."""
        return tuple(name for name in self.layout.names if is_statistic(name))


def is_statistic(name: str) -> bool:
    """Whether a tensor of a layout is a running statistic or its counter.

    >>> is_statistic("bn1.running_var"), is_statistic("bn1.weight")
    (True, False)
    """
    return name.rpartition(".")[2] in STATISTICS


def trace(module: nn.Module, example: Sequence[Any] | None = None) -> Traced:
    """The operations of `module` in training, by torch.fx, or by torch.export on `example` (inputs of two examples).

    Errors: `UsageError` where neither can follow the module, or where a trained parameter is never used.
    """
    module = copy.deepcopy(module).train()
    try:
        graph, by = _symbolic(module), "fx"
    except Exception as first:
        if example is None:
            raise UsageError(
                f"torch.fx cannot follow {type(module).__name__} ({_line(first)}): give example= rows, on which "
                "torch.export is tried, or write forward without branches on values."
            ) from first
        try:
            graph, by = _exported(module, example), "export"
        except Exception as second:
            raise UsageError(
                f"neither torch.fx ({_line(first)}) nor torch.export ({_line(second)}) can follow "
                f"{type(module).__name__}: write forward as a fixed sequence of operations."
            ) from second
    nodes = tuple(node for node in graph.graph.nodes if node.op != "output")
    known = tensors(module)
    number: dict[int, int] = {}
    names: list[str] = []
    uses: list[tuple[int, ...]] = []
    by_id = {id(tensor): name for name, tensor in tensors(graph).items()}
    for node in nodes:
        found: list[int] = []
        for key in map(id, _tensors_of(graph, node)):
            if key in by_id:
                if key not in number:
                    number[key] = len(names)
                    names.append(by_id[key])
                found.append(number[key])
        uses.append(tuple(found))
    unused = [name for name in known if name not in names and not is_statistic(name)]
    if unused:
        raise UsageError(
            f"parameter {unused[0]!r} is never used in the forward pass, so it lies on neither side of a cut: remove "
            "it, or set requires_grad=False."
        )
    layout = Layout.of({name: tuple(known[name].shape) for name in names})
    return Traced(graph, nodes, layout, tuple(uses), by)


def tensors(module: nn.Module) -> dict[str, Any]:
    """What training changes, by name: trained parameters and running statistics; a tied parameter once."""
    out: dict[str, Any] = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for name, buffer in module.named_buffers():
        if is_statistic(name):
            out[name] = buffer
    return out


def _symbolic(module: nn.Module) -> GraphModule:
    from torch import fx

    class Tracer(fx.Tracer):
        """A module without tensors of its own is one operation, whatever it does."""

        def is_leaf_module(self, m: Any, module_qualified_name: str) -> bool:
            bare = next(m.parameters(), None) is None and next(m.buffers(), None) is None
            return bare or super().is_leaf_module(m, module_qualified_name)

    given = inspect.signature(module.forward).parameters.values()
    fixed = {p.name: p.default for p in given if p.default is not p.empty}
    return fx.GraphModule(module, Tracer().trace(module, concrete_args=fixed or None))


def _exported(module: nn.Module, example: Sequence[Any]) -> GraphModule:
    from torch.export import Dim, export

    batch = Dim("batch", min=2)
    shapes = tuple({0: batch} for _ in example)
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # what it cannot follow it prints, graph and all, before it raises
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return export(module, tuple(example), dynamic_shapes=shapes).module(check_guards=False)
    finally:
        logging.disable(before)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _attribute(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module


def _tensors_of(graph: GraphModule, node: Node) -> Iterator[Any]:
    """The parameters and buffers an operation reads, in the order of its module."""
    if node.op == "call_module":
        for part in _attribute(graph, str(node.target)).modules():
            yield from part.parameters(recurse=False)
            yield from part.buffers(recurse=False)
    else:
        for source in node.all_input_nodes:
            if source.op == "get_attr":
                yield _attribute(graph, str(source.target))


def places(traced: Traced) -> tuple[Place, ...]:
    """Every place where one tensor crosses, with numbers of the vector on both sides, from the first to the last.

    Constants (`get_attr`) are known on both sides and do not cross.
    """
    nodes, last = traced.nodes, {node: at for at, node in enumerate(traced.nodes)}
    until = {node: max((last.get(user, len(nodes)) for user in node.users), default=-1) for node in nodes}
    first_behind = [len(traced.layout.names)] * (len(nodes) + 1)
    for at in range(len(nodes) - 1, -1, -1):
        first_behind[at] = min((first_behind[at + 1], *traced.uses[at]))
    out: list[Place] = []
    highest, alive = -1, set[Any]()
    names = _names(traced)
    for at, node in enumerate(nodes):
        highest = max((highest, *traced.uses[at]))
        if node.op != "get_attr":
            alive.add(node)
        alive = {one for one in alive if until[one] > at}
        size = traced.layout.offsets[highest + 1]
        if len(alive) != 1 or highest >= first_behind[at + 1] or not 0 < size < traced.layout.size:
            continue
        (value,) = alive
        if value.op == "placeholder" or (out and (out[-1].value, out[-1].size) == (last[value], size)):
            continue
        out.append(Place(at, last[value], size, names[at]))
    return tuple(out)


def _names(traced: Traced) -> list[str]:
    """A name per operation: the outermost module that ends with it, else the last one before it and what followed."""
    ends: dict[str, int] = {}
    for at, node in enumerate(traced.nodes):
        for path in _stack(node):
            ends[path] = at
    out: list[str] = []
    seen: set[str] = set()
    module = "input"
    for at, node in enumerate(traced.nodes):
        whole = next((path for path in _stack(node) if ends[path] == at), None)
        name = module if whole is None else whole
        if whole is None and node.op != "get_attr":
            name = f"{module}:{node.name}"
        module = module if whole is None else whole
        if name in seen and node.op != "get_attr":
            name = f"{name}:{node.name}"
        seen.add(name)
        out.append(name)
    return out


def _stack(node: Node) -> list[str]:
    """Paths of the modules an operation is in, from the outermost."""
    stack: Mapping[str, Any] = node.meta.get("nn_module_stack") or {}
    paths = [str(value[0]) if isinstance(value, tuple) else str(key) for key, value in stack.items()]
    if node.op == "call_module":
        paths.append(str(node.target))
    return [path for path in dict.fromkeys(paths) if path]


def between(traced: Traced, start: Place | None, stop: Place | None) -> GraphModule:
    """The operations behind `start` (None: from the inputs) up to `stop` (None: to the output), as a module.

    Its tensors are those of `traced.graph`; its one input (with `start`) is the value that crosses there.
    """
    from torch.fx import Graph, GraphModule

    nodes = traced.nodes
    low, high = (-1 if start is None else start.at), (len(nodes) - 1 if stop is None else stop.at)
    graph, env = Graph(), dict[Any, Any]()
    if start is not None:
        env[nodes[start.value]] = graph.placeholder("crossing")

    def known(node: Any) -> Any:
        if node not in env and node.op == "get_attr":
            env[node] = graph.node_copy(node)
        return env[node]

    for node in nodes[low + 1 : high + 1]:
        if node.op == "placeholder" or (node.op != "get_attr" and node not in env):
            env[node] = graph.node_copy(node, known)
    if stop is None:
        (end,) = (node for node in traced.graph.graph.nodes if node.op == "output")
        result: Any = end.args[0]
        if traced.by == "export" and isinstance(result, list | tuple) and len(result) == 1:
            (result,) = result
        graph.output(_mapped(result, known))
    else:
        graph.output(env[nodes[stop.value]])
    graph.lint()
    return GraphModule(traced.graph, graph)


def _mapped(value: Any, known: Any) -> Any:
    from torch.fx.node import map_arg

    return map_arg(value, known)


def changes_input(traced: Traced, place: Place) -> bool:
    """Whether an operation behind `place` may write over the value that crosses."""
    for user in traced.nodes[place.value].users:
        inside = user.op == "call_module" and getattr(_attribute(traced.graph, str(user.target)), "inplace", False)
        name = str(getattr(user.target, "__name__", user.target))
        ends = name.split(".")[0].endswith("_") and not name.endswith("__")
        if inside or ends or user.kwargs.get("inplace") or True in user.args[1:]:
            return True
    return False
