"""Linears of one block that do the same for different rows, as the experts of a mixture do: told by their names.

Which of them a row goes to is the model's choice. What one forward shows of a single expert (no rows, a few, by chance
as many as before) says nothing about the next; what it shows of all of them does.
"""

from collections.abc import Iterable, Mapping

from torch import nn

from .watch import block_of


def find_experts(network: nn.Module, blocks: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Linear -> all Linears of its block that have its place in another member of a list of alike modules.

    Only Linears that have such others are in it.
    """
    lists = {
        name: {index: type(member) for index, member in module.named_children()}
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and block_of(name, blocks) and _are_alike(module)
    }
    kinds: dict[str, list[str]] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            words = name.split(".")
            pattern = ".".join("*" if ".".join(words[:i]) in lists else word for i, word in enumerate(words))
            if pattern != name:
                kinds.setdefault(pattern, []).append(name)
    return {name: tuple(names) for names in kinds.values() if len(names) > 1 for name in names}


def _are_alike(members: Iterable[nn.Module]) -> bool:
    """Whether they are of one class and hold Linears of the same names and sizes."""
    forms = {
        (type(member), *((n, m.weight.shape) for n, m in member.named_modules() if isinstance(m, nn.Linear)))
        for member in members
    }
    return len(forms) == 1 and len(next(iter(forms))) > 1
