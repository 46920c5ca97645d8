"""Registers the hybrid tuner with HF PEFT as soon as peft is imported, and not before.

PEFT knows no plug-ins: a method must be registered before `PeftModel.from_pretrained` meets its name. `import autopeft`
promises that, yet the command line must start without torch. So where peft is not imported yet, a finder on
`sys.meta_path` lets the usual import run and registers afterwards.
"""

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def register_with_peft() -> None:
    """Register now if peft is fully imported, else right after its import."""
    peft = sys.modules.get("peft")
    if peft is not None and not getattr(getattr(peft, "__spec__", None), "_initializing", False):
        _register()
    elif not any(isinstance(finder, _PeftFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PeftFinder())


def _register() -> None:
    if "autopeft.hybrid" in sys.modules:
        return  # it imports peft itself and registers when it is complete
    from autopeft.hybrid import register

    register()


class _PeftFinder(importlib.abc.MetaPathFinder):
    """Finds nothing itself; wraps the loader that the other finders give for `peft`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "peft":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("peft")
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        assert module.__spec__ is not None
        module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        _register()
