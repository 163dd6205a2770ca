"""The host's model patcher, taught that patches on SVDQuant layers are low-rank factors.

While the host loads, unloads or hooks a model, our patches are out of its sight: it then neither bakes them into packed
bytes nor plans memory for dense weights. Before it loads they are installed on the layers as factors. Everything else,
cloning, unloading, paging, hooks on other layers, stays the host's.
"""

from contextlib import contextmanager

import comfy.model_patcher

from ...svdq_core.errors import SVDQuantError
from ...svdq_core.linear import dense_bias, dense_weight
from .linear import SVDQuantLinear
from .lora import check_shapes, make_factors, refuse_unsupported, signature_of


class _SVDQuantPatching:
    """Overrides for both of the host's patchers."""

    def svdquant_layers(self) -> dict[str, SVDQuantLinear]:
        """Weight key -> quantized module."""
        return {
            f"{name}.weight": module
            for name, module in self.model.named_modules()
            if isinstance(module, SVDQuantLinear) and module.quantized
        }

    @contextmanager
    def _patches_hidden(self):
        hidden = {key: self.patches.pop(key) for key in self.svdquant_layers() if key in self.patches}
        try:
            yield
        finally:
            self.patches.update(hidden)

    def _install_factors(self, extra: dict | None = None, clear: bool = False) -> None:
        """Put the current patches, and those of hooks, on the layers as factors; unchanged ones are left alone."""
        dtype = self.model.get_dtype()
        for key, module in self.svdquant_layers().items():
            patches = [] if clear else self.patches.get(key, []) + (extra or {}).get(key, [])
            if module.lora is not None and module.lora.signature == signature_of(patches):
                continue
            if patches or module.lora is not None:
                factors = make_factors(patches, module.in_features, module.out_features, dtype) if patches else None
                module.install_lora(factors)

    def load(self, *args, **kwargs):
        if self.is_dynamic():
            self.restore_loaded_backups()  # first: it puts back the buffers of the LoRA before
        self._install_factors()
        with self._patches_hidden():
            return super().load(*args, **kwargs)

    def partially_unload(self, *args, **kwargs):
        with self._patches_hidden():
            return super().partially_unload(*args, **kwargs)

    def unpatch_model(self, device_to=None, unpatch_weights=True):
        result = super().unpatch_model(device_to, unpatch_weights)
        if unpatch_weights:
            self._install_factors(clear=True)
        return result

    def patch_hooks(self, hooks):
        layers, saved = self.svdquant_layers(), self.hook_patches
        self.hook_patches = {
            ref: {k: v for k, v in patches.items() if k not in layers} for ref, patches in saved.items()
        }
        try:
            super().patch_hooks(hooks)
        finally:
            self.hook_patches = saved
        self._install_factors(None if hooks is None else self.get_combined_hook_patches(hooks))

    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0):
        layers = self.svdquant_layers()
        for target, patch in patches.items():
            key, offset, function = (target, None, None) if isinstance(target, str) else (*target, None, None)[:3]
            if key in layers:
                refuse_unsupported(key, patch, strength_model, function)
                check_shapes(key, patch, offset, layers[key].in_features, layers[key].out_features)
        return super().add_patches(patches, strength_patch, strength_model)

    def add_weight_wrapper(self, name, function):
        if name in self.svdquant_layers():
            raise SVDQuantError(
                f"{name}: another node wants to transform this weight, which is packed in 4 bits. Use a LoRA instead, or "
                "the full-precision model."
            )
        return super().add_weight_wrapper(name, function)

    def get_key_patches(self, filter_prefix=None):
        """For merging from this model into a dense one: each of our weights comes with a function that unpacks it."""
        patches = super().get_key_patches(filter_prefix)
        for key, module in self.svdquant_layers().items():
            # the host hands over the bytes cast to float; the module still has them as they are
            if key in patches:
                patches[key][0] = (patches[key][0][0], lambda w, m=module, **_: dense_weight(m.layer_on(w.device)))
            bias = key.removesuffix("weight") + "bias"
            if bias in patches:  # of a layer behind a GELU it holds the correction for the shifted codes
                patches[bias][0] = (patches[bias][0][0], lambda b, m=module, **_: dense_bias(m.layer_on(b.device)))
        return patches

    def model_state_dict_for_saving(self, model=None, prefix=""):
        modules = list(self.svdquant_layers().values())
        before = [module.__dict__.get("comfy_patched_weights") for module in modules]
        for module in modules:
            # "already final": the host would otherwise wrap our bytes as a float parameter to be patched while saving
            module.comfy_patched_weights = module.bake_lora = True
        try:
            self._install_factors()
            return super().model_state_dict_for_saving(model, prefix)
        finally:
            for module, value in zip(modules, before, strict=True):
                module.bake_lora = False
                if value is None:
                    del module.comfy_patched_weights
                else:
                    module.comfy_patched_weights = value

    def clone(self, *args, **kwargs):
        copy = super().clone(*args, **kwargs)
        if type(copy) is comfy.model_patcher.ModelPatcher:  # what disable_dynamic=True hands back
            copy.__class__ = SVDQuantPatcher
        return copy


class SVDQuantPatcher(_SVDQuantPatching, comfy.model_patcher.ModelPatcher):
    """For the host's estimate-based memory management."""


class SVDQuantPatcherDynamic(_SVDQuantPatching, comfy.model_patcher.ModelPatcherDynamic):
    """For the host's dynamic VRAM."""


def adopt(patcher: comfy.model_patcher.ModelPatcher) -> comfy.model_patcher.ModelPatcher:
    """Make the host's patcher ours, in place: a second object for the same model would unload it when the first dies."""
    patcher.__class__ = SVDQuantPatcherDynamic if patcher.is_dynamic() else SVDQuantPatcher
    return patcher
