"""The host's model patcher, taught that patches on SVDQuant layers are computed beside the weight.

While the host loads, unloads or hooks a model, our patches are out of its sight: it then neither bakes them into packed
bytes nor plans memory for dense weights. They are installed on the layers instead. Everything else, cloning, unloading,
paging, hooks on other layers, stays the host's; other patches of a loaded model are exchanged where they lie, so
changing a LoRA never sends a model through the memory of the CPU.
"""

from contextlib import contextmanager
from functools import partial

import comfy.model_patcher

from ....svdq_core.blob import to_blob
from ....svdq_core.errors import SVDQuantError
from ....svdq_core.stack import as_in_files
from ..lora.bake import baked_layer
from ..lora.exchange import exchange_patches
from ..lora.identity import signature_of
from ..lora.install import bias_key, factor_bytes, install, move_factors, planned_bytes
from ..lora.misfit import refuse_misfit
from ..lora.patches import combine
from .quantized_linear import SVDQuantLinear


class _SVDQuantPatching:
    """Overrides for both of the host's patchers."""

    def svdquant_layers(self) -> dict[str, SVDQuantLinear]:
        """Weight key -> quantized module."""
        return self.model.svdquant_layers

    def svdquant_keys(self) -> dict[str, SVDQuantLinear]:
        """Key of a weight or bias whose patches are ours to compute -> its module.

        A bias as well: what a layer behind a GELU stores is not the bias that patches are meant for.
        """
        layers = self.svdquant_layers()
        return layers | {bias_key(key): module for key, module in layers.items()}

    @contextmanager
    def _patches_hidden(self):
        hidden = {key: self.patches.pop(key) for key in self.svdquant_keys() if key in self.patches}
        try:
            yield
        finally:
            self.patches.update(hidden)

    def other_patches(self) -> dict[str, tuple]:
        """Key -> signature of what is on weights that the host patches itself."""
        ours = self.svdquant_keys()
        return {key: signature_of(patches) for key, patches in self.patches.items() if key not in ours}

    # Adding patches: what cannot work is refused here, where a node can still say so.

    def _check(self, patches, strength_patch: float, strength_model: float) -> None:
        ours = self.svdquant_keys()
        for target, value in patches.items():
            key, offset = (target, None) if isinstance(target, str) else target[:2]
            if key in ours:
                sizes = ours[key].out_features, ours[key].in_features
                shape = sizes if key.endswith(".weight") else sizes[:1]
                refuse_misfit(key, value, offset, shape, (strength_patch, strength_model))

    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0):
        self._check(patches, strength_patch, strength_model)
        added = super().add_patches(patches, strength_patch, strength_model)
        for key in {target if isinstance(target, str) else target[0] for target in added}:
            # the same file twice, with s and -s: nothing, and not the rounding of a sum
            self.patches[key] = combine(self.patches[key])
            if not self.patches[key]:
                del self.patches[key]
        return added

    def add_hook_patches(self, hook, patches, strength_patch=1.0, strength_model=1.0):
        self._check(patches, strength_patch, strength_model)
        return super().add_hook_patches(hook, patches, strength_patch, strength_model)

    def add_weight_wrapper(self, name, function):
        if name in self.svdquant_keys():
            raise SVDQuantError(
                f"{name}: another node wants to transform this tensor of a layer that is packed in 4 bits. Use a LoRA "
                "instead, or the full-precision model."
            )
        return super().add_weight_wrapper(name, function)

    # Memory: what LoRAs add is counted with the layer that it lies on.

    def model_size(self):
        return super().model_size() + planned_bytes(self)

    def _load_list(self, *args, **kwargs):
        modules = {id(module): module for module in self.svdquant_layers().values()}
        entries = []
        for *criteria, size, name, module, params in super()._load_list(*args, **kwargs):
            if id(module) in modules:
                # the host takes a byte of a blob for a weight to be cast; it needs no more room than it has
                size += factor_bytes(module)
                criteria = [size] if len(criteria) == 1 else [size >= 64 * 1024, -size]
            entries.append((*criteria, size, name, module, params))
        return entries

    def _forget_replaced(self) -> None:
        """Leave layers to the host in whose place another pack has put a module of its own, perhaps around ours."""
        known = self.svdquant_layers()
        for key, module in list(known.items()):
            try:
                there = self.model.get_submodule(key.removesuffix(".weight"))
            except AttributeError:
                there = None
            if there is not module:
                module.gelu = None  # whoever calls it now expects a Linear alone
                module.install_lora(None, {})
                del known[key]

    def load(self, *args, **kwargs):
        self._forget_replaced()
        if self.is_dynamic():
            self.restore_loaded_backups()  # first: it puts back the buffers of the LoRA before
        install(self, self.load_device)
        with self._patches_hidden():
            result = super().load(*args, **kwargs)
        self.model.svdquant_loaded_patches = self.other_patches()
        self.model.svdquant_loaded_wrappers = {k: list(v) for k, v in self.weight_wrapper_patches.items()}
        return result

    def partially_unload(self, *args, **kwargs):
        self.release_graphs()
        with self._patches_hidden():
            return super().partially_unload(*args, **kwargs)

    def release_graphs(self) -> None:
        """Free what CUDA graphs of the model work in: its weights are about to move."""
        graphs = getattr(self.model, "svdquant_graphs", None)
        if graphs is not None:
            graphs.clear()

    def unpatch_model(self, device_to=None, unpatch_weights=True):
        if unpatch_weights:
            self.release_graphs()
        result = super().unpatch_model(device_to, unpatch_weights)
        if unpatch_weights:
            install(self, self.load_device, clear=True)
        return result

    def patch_hooks(self, hooks):
        if hooks is None and not self.model.svdquant_hooked:
            return super().patch_hooks(hooks)
        ours, saved = self.svdquant_keys(), self.hook_patches
        self.hook_patches = {ref: {k: v for k, v in patches.items() if k not in ours} for ref, patches in saved.items()}
        try:
            super().patch_hooks(hooks)
        finally:
            self.hook_patches = saved
        install(self, self.load_device, self.get_combined_hook_patches(hooks))
        self.model.svdquant_hooked = hooks is not None
        return None

    def clear_cached_hook_weights(self):
        super().clear_cached_hook_weights()
        for module in self.svdquant_layers().values():
            module.lora_spares.clear()

    # Reading the weights: other models and files get them unpacked, or as they are stored.

    def get_key_patches(self, filter_prefix=None):
        """For merging from this model into a dense one, and for other packs: our weights and biases as dense ones."""
        patches = super().get_key_patches(filter_prefix)
        for key, module in self.svdquant_layers().items():
            for name, view in module.dense_views().items():
                if key.removesuffix("weight") + name in patches:
                    patches[key.removesuffix("weight") + name][0] = (view, lambda tensor, **_: tensor)
        return patches

    def model_state_dict_for_saving(self, model=None, prefix=""):
        layers, biases = self.svdquant_layers(), {}
        before = {key: module.__dict__.get("comfy_patched_weights") for key, module in layers.items()}
        try:
            for key, module in layers.items():
                # "already final": the host would otherwise wrap our bytes as a float parameter, to be patched later
                module.comfy_patched_weights = True
                module.saved_as = module.stored()
                if key in self.patches or bias_key(key) in self.patches:
                    where = key.removeprefix("diffusion_model.").removesuffix(".weight")
                    patches = self.patches.get(key, []), self.patches.get(bias_key(key), [])
                    layer = baked_layer(as_in_files(module.layer()), *patches, where)
                    module.saved_as, biases[bias_key(key)] = to_blob(layer), layer.bias
            state = super().model_state_dict_for_saving(model, prefix)
        finally:
            for key, module in layers.items():
                module.saved_as = None
                if before[key] is None:
                    del module.comfy_patched_weights
                else:
                    module.comfy_patched_weights = before[key]
        for key, bias in biases.items():
            if key.removeprefix(prefix) in state:
                state[key.removeprefix(prefix)] = bias
        return state | self.model.svdquant_unused

    def clone(self, *args, **kwargs):
        copy = super().clone(*args, **kwargs)
        copy.size = self.size  # the host passes on model_size(), which counts this model's LoRAs
        if type(copy) is comfy.model_patcher.ModelPatcher:  # what disable_dynamic=True hands back
            copy.__class__ = SVDQuantPatcher
        return copy

    def deepclone_multigpu(self, new_load_device=None, models_cache=None):
        """The host's copy for another GPU, read for that one: modes and layouts are chosen by what runs a model."""
        initial = self.cached_patcher_init
        if initial is not None and new_load_device is not None:
            self.cached_patcher_init = (partial(initial[0], load_device=new_load_device), *initial[1:])
        try:  # the copy keeps it: asked for another of itself, the host wants that for the same GPU
            return super().deepclone_multigpu(new_load_device=new_load_device, models_cache=models_cache)
        finally:
            self.cached_patcher_init = initial


class SVDQuantPatcher(_SVDQuantPatching, comfy.model_patcher.ModelPatcher):
    """For the host's estimate-based memory management."""

    def load(self, *args, **kwargs):
        super().load(*args, **kwargs)
        # Loading more of a partly loaded model, the host can take a layer that is on the card and patched for one that
        # is not: it would patch it once more in every step, and not count it.
        loaded = 0
        for *_, size, _, module, _ in self._load_list():
            if getattr(module, "comfy_patched_weights", False) is True:
                loaded += size
                for name in ("weight_function", "bias_function"):
                    functions = getattr(module, name, [])
                    if any(isinstance(f, comfy.model_patcher.LowVramPatch) for f in functions):
                        kept = [f for f in functions if not isinstance(f, comfy.model_patcher.LowVramPatch)]
                        setattr(module, name, kept)
        if self.model.model_lowvram:
            self.model.model_loaded_weight_memory = loaded

    def partially_load(self, device_to, extra_memory=0, force_patch_weights=False, **more):
        if not force_patch_weights:
            before = self.loaded_size()
            growth = planned_bytes(self) - sum(factor_bytes(module) for module in self.svdquant_layers().values())
            if before and growth > extra_memory:
                self.partially_unload(self.offload_device, growth - extra_memory)  # room first: the card may be full
            exchange_patches(self, device_to)
            extra_memory -= self.loaded_size() - before
        # by name: multi-GPU packs put another parameter before it
        return super().partially_load(device_to, extra_memory, force_patch_weights=force_patch_weights, **more)


class SVDQuantPatcherDynamic(_SVDQuantPatching, comfy.model_patcher.ModelPatcherDynamic):
    """For the host's dynamic VRAM."""

    def load(self, *args, **kwargs):
        # the host would upload every weight again after any change; ours, and those with the same patches, stay
        changed = {k for k, _ in self.other_patches().items() ^ self.model.svdquant_loaded_patches.items()}
        modules = [
            module
            for name, module in self.model.named_modules()
            if hasattr(module, "_v_signature") and not {f"{name}.weight", f"{name}.bias"} & changed
        ]
        before = [module._v_signature for module in modules]
        result = super().load(*args, **kwargs)
        for module, signature in zip(modules, before, strict=True):
            module._v_signature = signature
        return result

    def partially_unload(self, *args, **kwargs):
        freed = super().partially_unload(*args, **kwargs)
        if self.model.model_loaded_weight_memory == 0:  # the host took back what it had forced onto the card
            move_factors(self, self.offload_device)
        return freed


def adopt(patcher: comfy.model_patcher.ModelPatcher) -> comfy.model_patcher.ModelPatcher:
    """Make the host's patcher ours, in place: a second one for the same model would unload it when the first dies."""
    model = patcher.model
    model.svdquant_layers = {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, SVDQuantLinear) and module.quantized
    }
    model.svdquant_installed = None  # signature of the patches that are on the layers
    model.svdquant_hooked = False  # whether hooks have changed them
    model.svdquant_loaded_patches = {}  # key -> signature, on weights that the host patches
    model.svdquant_loaded_wrappers = {}  # key -> functions of other nodes, on the same
    patcher.__class__ = SVDQuantPatcherDynamic if patcher.is_dynamic() else SVDQuantPatcher
    return patcher
