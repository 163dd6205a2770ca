"""The weights that a graph reads: they have to be where they were, and to stay there while it runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Weights:
    """Where all weights of a loaded model lie now.

    Args:
        model: the host's BaseModel. device: where it computes.

    Raises:
        LookupError: some of them are elsewhere, or are computed anew in each step.
    """

    def __init__(self, model: Any, device: torch.device):
        modules = list(model.diffusion_model.modules())
        self._forwards = [vars(m) for m in modules]
        self._tensors = [found for m in modules for found in (m._parameters, m._buffers)]
        self._paged = [m for m in modules if hasattr(m, "_v")]
        self._signatures = [m._v_signature for m in self._paged]
        self._objects = self._patched_objects(model)
        patcher = model.current_patcher
        self._patches, self._plans = patcher.patches_uuid, [getattr(m, "lora", None) for m in modules]
        self._modules, self._device = modules, device
        self._addresses = self._find()
        self._check()

    def _check(self) -> None:
        for m in self._modules:
            if "forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks:
                raise LookupError(f"the forward of a {type(m).__name__} was replaced")
            for name in ("weight_function", "bias_function", "weight_lowvram_function", "bias_lowvram_function"):
                if getattr(m, name, None) and not (hasattr(m, "_v") and name.endswith("lowvram_function")):
                    raise LookupError(f"a weight of a {type(m).__name__} is computed in each step")
        paged = {id(m._parameters) for m in self._paged}
        for found in self._tensors:
            for name, tensor in found.items():
                if tensor is not None and tensor.device != self._device and id(found) not in paged:
                    raise LookupError(f"{name} lies on {tensor.device}")
        if any(signature is None for signature in self._signatures):
            raise LookupError("not all weights are on the card")

    @staticmethod
    def _patched_objects(model: Any) -> list:
        """What other nodes put in the place of the model's own objects, and the sampling that it computes with."""
        return [model.model_sampling, *model.current_patcher.object_patches.values()]

    def _find(self) -> list[int | None]:
        return [None if t is None else t.data_ptr() for found in self._tensors for t in found.values()]

    def same(self, model: Any) -> bool:
        """Whether nothing has moved or been replaced since; what is paged, pinned() has to ask for."""
        objects = self._patched_objects(model)
        return (
            model.current_patcher.patches_uuid == self._patches
            and len(objects) == len(self._objects)
            and all(a is b for a, b in zip(objects, self._objects, strict=True))
            and not any("forward" in attributes for attributes in self._forwards)
            and all(getattr(m, "lora", None) is plan for m, plan in zip(self._modules, self._plans, strict=True))
            and self._find() == self._addresses
        )

    @contextmanager
    def pinned(self) -> Iterator[bool]:
        """Hold weights that the host pages where they are; yields whether all of them still are on the card."""
        if not self._paged:
            yield True
            return
        import comfy_aimdo.model_vbar as pages

        held = []
        try:
            for m, before in zip(self._paged, self._signatures, strict=True):
                signature = pages.vbar_fault(m._v)
                if signature is not None:
                    held.append(m)
                if m._v_signature is not before or not pages.vbar_signature_compare(signature, before):
                    yield False
                    return
            yield True
        finally:
            for m in held:
                pages.vbar_unpin(m._v)
