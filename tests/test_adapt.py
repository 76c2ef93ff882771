"""What a job takes as its model, and in which words it refuses the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from fieldfare.core.errors import MissingExtra, UsageError
from fieldfare.work import torch_resident
from fieldfare.work.adapt import as_net
from fieldfare.work.dense import mlp


def test_a_declared_net_is_taken_as_it_is() -> None:
    net = mlp(4, 2)
    assert as_net(net) is net
    assert as_net(lambda: net) is net
    assert as_net(net, loss="cross_entropy") is net


def test_a_function_that_wants_arguments_is_refused() -> None:
    with pytest.raises(UsageError, match="wrap it in a lambda"):
        as_net(lambda width: mlp(width, 2))


def test_a_loss_for_a_model_that_brings_its_own_is_refused() -> None:
    with pytest.raises(UsageError, match="brings its own"):
        as_net(mlp(4, 2), loss="mse")
    with pytest.raises(UsageError, match="brings its own"):
        as_net(mlp(4, 2), metrics=("accuracy",))


@pytest.mark.parametrize("wrong", [None, 3, "mlp", object(), lambda: 3, lambda: None, dict])
def test_anything_else_is_refused_in_one_line(wrong: Any) -> None:
    with pytest.raises(UsageError, match=r"pass fieldfare.mlp|returned nothing|is a class") as error:
        as_net(wrong)
    assert "\n" not in str(error.value)


def test_recognising_a_model_imports_no_library() -> None:
    code = (
        "import sys; from fieldfare.work.adapt import as_net; from fieldfare import mlp; as_net(mlp(4, 2)); "
        "assert not {'torch', 'jax', 'sklearn', 'xgboost'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_module_and_its_factory_become_torch_nets() -> None:
    torch = pytest.importorskip("torch")
    for given in (torch.nn.Linear(3, 2), lambda: torch.nn.Linear(3, 2)):
        net = as_net(given, example={"x": np.zeros((1, 3), np.float32), "y": np.zeros(1, np.int64)})
        assert net.layout.names == ("weight", "bias")
        assert net.flops() == 24
    state = torch.get_rng_state()
    as_net(lambda: torch.nn.Linear(3, 2))
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(UsageError, match="is a class"):
        as_net(torch.nn.Identity)


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from fieldfare.work.torch_net import torch_net

    torch_resident.need_torch.cache_clear()
    monkeypatch.setattr(torch_resident, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'fieldfare\[torch\]'"):
        torch_net(object())  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_net_trained_here_trains_alike_in_a_forked_process() -> None:
    pytest.importorskip("torch")
    from torch_cases import case, module

    one = case("group_norm")
    net = as_net(module("group_norm"))
    start = net.init(0).vector[None]
    expected = one.fit(net, start).params
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, b"same" if np.array_equal(one.fit(net, start).params, expected) else b"other")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 10) == b"same"
