"""Stand-in for a package that ComfyUI imports but does not use here; installed under that package's name.

Every submodule can be imported, every attribute is a function that raises when it is called.
"""

import importlib.abc
import importlib.machinery
import sys
import types

__version__ = "0.0+stub"
_PACKAGE = __name__


def _attribute(module: str, name: str):
    if name.startswith("__"):
        raise AttributeError(name)

    def absent(*args, **kwargs):
        raise RuntimeError(f"{module}.{name} was called, but {_PACKAGE} is not installed here (a stub stands in).")

    return absent


class _Submodules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.startswith(_PACKAGE + "."):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return types.ModuleType(spec.name)

    def exec_module(self, module):
        module.__getattr__ = lambda name: _attribute(module.__name__, name)


def __getattr__(name: str):
    return _attribute(_PACKAGE, name)


sys.meta_path.insert(0, _Submodules())
