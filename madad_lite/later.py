"""What diffusers imports and detection never uses, left until something asks for it.

diffusers marks classes for torch.compile, and loads PyTorch's compiler to do so; two of its schedulers want parts of
scipy. Together they take as long as torch itself (`python -m benchmarks start`).
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace


class _Later(ModuleType):
    """Stands in for a module, which is loaded when something is asked of it that this one does not know."""

    def __init__(self, name: str, **known: object):
        super().__init__(name)
        self.__dict__.update(known)

    def __getattr__(self, name: str) -> object:
        if (
            name.startswith("__") and name != "__path__"
        ):  # whoever looks through all modules wants nothing of it
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def _as_it_is(function=None, *_, **__):
    """In place of torch.compiler.disable, with or without brackets."""
    return _as_it_is if function is None else function


def import_diffusers() -> None:
    """diffusers' models and pipelines without those, in a process that compiles nothing: `madad detect`."""
    for name in ("scipy.stats", "scipy.integrate"):
        sys.modules.setdefault(name, _Later(name))
    import torch

    compiler = "torch._dynamo"
    if compiler in sys.modules:
        return
    disable, torch.compiler.disable = torch.compiler.disable, _as_it_is
    sys.modules[compiler] = None  # an ImportError for whoever wants it: diffusers has its own way without
    try:
        from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DModel  # noqa: F401
    except ImportError:  # not this version: it is imported again, with all that it wants
        pass
    finally:
        torch.compiler.disable = disable
        del sys.modules[compiler]
    # diffusers asks of every model whether it is a compiled one; `import torch._dynamo` takes this one's place
    torch._dynamo = _Later(
        compiler, eval_frame=SimpleNamespace(OptimizedModule=type("OptimizedModule", (), {}))
    )
