"""Mocks for what fluke imports but does not train with, so that its environment needs no CUDA packages."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from typing import Any
from unittest.mock import MagicMock


class _Stubs:
    """Imports of the named packages give a mock."""

    roots = ("torchvision", "wandb", "clearml", "opacus", "datasets", "tensorboard")

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] in self.roots:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: Any) -> Any:
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
        return module

    def exec_module(self, module: Any) -> None:
        """A mock has nothing to execute."""


def install() -> None:
    """From now on imports of the packages in ``_Stubs.roots`` give mocks."""
    sys.meta_path.insert(0, _Stubs())  # type: ignore[arg-type]
    tensorboard: Any = types.ModuleType("torch.utils.tensorboard")
    tensorboard.SummaryWriter = object
    sys.modules["torch.utils.tensorboard"] = tensorboard
