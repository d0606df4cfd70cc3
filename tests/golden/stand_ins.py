"""Modules without content in place of what SAELens and others ask for beside PyTorch.

That is a language-model stack of gigabytes, of which classes of weights need nothing.

  python stand_ins.py SCRIPT    runs a script with them
"""

import importlib.abc
import importlib.machinery
import runpy
import sys
import types
from unittest.mock import MagicMock

import torch

ABSENT = {
    "IPython", "babe", "circuitsvis", "datasets", "dotenv", "huggingface_hub", "matplotlib", "nltk",
    "nnsight", "pandas", "plotly", "simple_parsing", "tenacity", "transformer_lens", "transformers",
    "wandb", "zstandard",
}  # fmt: skip


class HookPoint(torch.nn.Identity):
    pass


class HookedRootModule(torch.nn.Module):
    def setup(self):
        pass


class Absent(types.ModuleType):
    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return {"HookPoint": HookPoint, "HookedRootModule": HookedRootModule}.get(name, MagicMock())


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ABSENT:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return Absent(spec.name)

    def exec_module(self, module):
        pass


def install():
    """To be called before the libraries are imported."""
    sys.meta_path.append(Finder())


if __name__ == "__main__":
    install()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
