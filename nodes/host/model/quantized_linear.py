"""The Linear that the host builds its models from: quantized where the file says so, the host's ordinary one elsewhere.

All tensors of a quantized layer are one flat uint8 parameter called `weight`, so the host moves, pages, pins and counts
it like any other weight, and its LoRA key map finds it. placeholder.py says how it gets there; in a saved state dict
the blob stands under `weight`, and `svdq_layout` beside it: the blob's layout as JSON bytes. What LoRAs need lies in
buffers called lora_*, which move with the module and stay out of files.
"""

from functools import cache
from sys import intern

import comfy.memory_management
import comfy.ops
import torch
from torch import Tensor

from ....svdq_core.apply_layer import apply_blob, dense_bias, dense_weight
from ....svdq_core.blob import BlobLayout, to_blob
from ....svdq_core.errors import ArchitectureError
from ....svdq_core.layer import QuantizedLayer
from ....svdq_core.shared_input import SharedInput
from ....svdq_core.stack import as_in_files
from ..lora.factors import add_bias, add_lora
from ..lora.plan import LoraPlan
from .dense_view import DenseView
from .joined import Joined
from .norms import KernelLayerNorm, KernelRMSNorm
from .placeholder import Packed, is_empty_shape, packed_of

LAYOUT_KEY = "svdq_layout"


def is_quantized(patcher) -> bool:
    """Whether any layer of a MODEL is an SVDQuant layer."""
    return any(isinstance(m, SVDQuantLinear) and m.quantized for m in patcher.model.modules())


def layout_to_tensor(layout: BlobLayout) -> Tensor:
    """The layout as a 1-D uint8 tensor, the form in which it travels in a state dict."""
    return torch.frombuffer(bytearray(layout.to_json().encode()), dtype=torch.uint8)


class SVDQuantLinear(comfy.ops.manual_cast.Linear):
    """A Linear that takes an SVDQuant blob; one whose weight turns out to be an ordinary one becomes the host's own.

    It is a torch.nn.Linear, as other packs expect of what multiplies in a block (GGUF's and bitsandbytes' layers are,
    too); its weight is a row of bytes all the same. Nothing is allocated before the state dict arrives: a model of
    twelve billion parameters would not fit twice.
    """

    compute = "w4a4"  # set by operations()
    layout: BlobLayout | None = None
    layout_text = ""  # the same as JSON
    gelu: str | None = None  # "input" or "output": where the layer applies a GELU; see fold.py
    gelu_from = 0  # first column that it is applied to
    lora: LoraPlan | None = None
    shared: SharedInput | None = None  # the model's slot for what several layers read; set by build_model
    saved_as: tuple[Tensor, BlobLayout] | None = None  # while the host saves: the blob that it shall see

    def __init__(self, in_features: int, out_features: int, bias: bool = True, device=None, dtype=None):
        torch.nn.Module.__init__(self)  # the host's would allocate
        self.in_features, self.out_features = in_features, out_features
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        self.comfy_need_lazy_init_bias = bias
        # the host casts a weight to these when it pages it in; a blob must stay bytes
        self.weight_comfy_model_dtype: torch.dtype | None = dtype
        self.shown_dtype = dtype or torch.float32  # of the dense weight that others see
        self.bias_comfy_model_dtype: torch.dtype | None = dtype

    @property
    def quantized(self) -> bool:
        return self.layout is not None

    def extra_repr(self) -> str:
        parts = "" if self.layout is None else ", " + "+".join(p.scheme for p in self.layout.parts)
        return f"in_features={self.in_features}, out_features={self.out_features}{parts}"

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        weight, bias = state_dict.get(prefix + "weight"), state_dict.get(prefix + "bias")
        if self.quantized and prefix + LAYOUT_KEY not in state_dict and (weight is None or packed_of(weight) is None):
            self._keep(prefix, weight, missing_keys)
            return
        if weight is None:
            missing_keys.append(prefix + "weight")
            weight = torch.zeros(self.out_features, self.in_features, dtype=self.weight_comfy_model_dtype)
        packed = packed_of(weight)
        if packed is None and prefix + LAYOUT_KEY in state_dict:  # as the host saves it
            packed = Packed(weight, BlobLayout.from_json(bytes(state_dict[prefix + LAYOUT_KEY].tolist()).decode()))
        name, shape = prefix.removesuffix("."), tuple(weight.shape)
        self._check_size(name, shape if packed is None else (packed.layout.out_features, packed.layout.in_features))
        if packed is not None:
            self.layout = packed.layout
            self.layout_text = intern(packed.layout.to_json())  # layers with equal layouts share one string
            self.lora_spares: dict[tuple, dict[str, Tensor]] = {}  # signature -> tensors, while hooks switch LoRAs
            self.weight_comfy_model_dtype = self.bias_comfy_model_dtype = None
            weight = packed.blob
        elif is_empty_shape(weight):
            raise ArchitectureError(
                f"{name}: ComfyUI takes this layer apart before it loads it; it cannot be quantized."
            )
        else:
            if bias is None and self.comfy_need_lazy_init_bias:
                missing_keys.append(prefix + "bias")
                bias = torch.zeros(self.out_features, dtype=self.bias_comfy_model_dtype)
            if not comfy.memory_management.aimdo_enabled:  # with it the host pages file bytes and casts them itself
                weight = weight.to(self.weight_comfy_model_dtype or weight.dtype)
                bias = None if bias is None else bias.to(self.bias_comfy_model_dtype or bias.dtype)
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)
        if packed is None:
            self.__class__ = comfy.ops.manual_cast.Linear  # pyright: ignore[reportAttributeAccessIssue]

    def _keep(self, prefix: str, weight: Tensor | None, missing_keys: list[str]) -> None:
        """Stay as it is, where other packs load a state dict into a model that is loaded already.

        Raises:
            ArchitectureError: the state dict has another weight for this layer.
        """
        if weight is None:
            missing_keys.append(prefix + "weight")
        elif not isinstance(weight, DenseView):  # what this layer showed of itself may come back
            raise ArchitectureError(
                f"{prefix.removesuffix('.')}: another node wants to load a 16-bit weight into this layer, which is "
                "packed in 4 bits. Use that node with the full-precision model."
            )

    def _check_size(self, name: str, found: tuple[int, ...]) -> None:
        if found != (self.out_features, self.in_features):
            sizes = f"{found[1]} inputs and {found[0]} outputs" if len(found) == 2 else f"shape {found}"
            raise ArchitectureError(
                f"{name}: the file has {sizes}, the model of this architecture {self.in_features} inputs and "
                f"{self.out_features} outputs. The file belongs to another model."
            )

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.saved_as is not None:
            blob, layout = self.saved_as
            destination[prefix + "weight"], destination[prefix + LAYOUT_KEY] = blob, layout_to_tensor(layout)
        elif not keep_vars and self.quantized:
            destination.update({prefix + name: view for name, view in self.dense_views().items()})

    def dense_views(self) -> dict[str, Tensor]:
        """weight, and bias where the stored one is not the true one, as others are to see them."""
        assert self.layout is not None, "asked of a layer that is not quantized"
        shape = self.out_features, self.in_features
        device, dtype, weight, bias = self.weight.device, self.shown_dtype, self.weight, self.bias
        views: dict[str, Tensor] = {
            "weight": DenseView(shape, dtype, device, lambda on: dense_weight(self.layer_on(on)), weight.nbytes)
        }
        if bias is not None and any(part.act_unsigned or "bias" in part.slices for part in self.layout.parts):
            views["bias"] = DenseView(shape[:1], dtype, device, self._true_bias, bias.nbytes)
        return views

    def _true_bias(self, device: torch.device) -> Tensor:
        bias = dense_bias(self.layer_on(device))
        assert bias is not None, "a layer with a stored bias has one"
        return bias

    @property
    def wrapped(self) -> bool:
        """Whether others compute something around forward, as the host's bypass LoRAs do: a GELU belongs behind it."""
        forward = self.__dict__.get("forward")
        replaced = forward is not None and getattr(forward, "__func__", None) is not type(self).forward
        return replaced or bool(self._forward_hooks) or bool(self._forward_pre_hooks)

    def can_apply_gelu(self, where: str, first: int = 0) -> bool:
        """Whether the layer could apply a GELU to its "input", which a quantizer must read, or to its "output".

        Args:
            first: the first column that goes through it; of the input one at which a part begins.
        """
        if self.layout is None or where == "output":
            return self.layout is not None
        behind = [part for part in self.layout.parts if part.columns[1] > first]
        return all(part.scheme != "awq" and part.columns[0] >= first for part in behind)

    def layer(self) -> QuantizedLayer:
        """Views of the tensors where they are now; do not keep them."""
        return self._read(self.weight.data, self.bias)

    def stored(self) -> tuple[Tensor, BlobLayout]:
        """The blob as files hold it, where possible a view, and its layout."""
        assert self.layout is not None, "asked of a layer that is not quantized"
        if not all(part.as_in_files for part in self.layout.parts):
            return to_blob(as_in_files(self.layer()))
        return self.layout.without_derived(self.weight.detach())

    def layer_on(self, device: torch.device) -> QuantizedLayer:
        """The tensors on a device: a copy unless they are there already."""
        return self._read(self.weight.data.to(device), None if self.bias is None else self.bias.to(device))

    def _read(self, blob: Tensor, bias: Tensor | None) -> QuantizedLayer:
        assert self.layout is not None, "asked of a layer that is not quantized"
        return self.layout.read(blob, bias)

    def forward(self, x: Tensor) -> Tensor:
        comfy.ops.run_every_op()
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        assert weight is not None, "ComfyUI has not loaded this layer"
        if self._is_in_place(weight, bias, x.device):
            return self._compute(x, weight, bias)
        # the dtypes asked for are those it has: the host then moves bytes and converts nothing
        weight, bias, stream = comfy.ops.cast_bias_weight(
            self,
            None,
            dtype=weight.dtype,
            device=x.device,
            bias_dtype=None if bias is None else bias.dtype,
            offloadable=True,
        )
        try:  # an exception must not leave a paged weight pinned
            return self._compute(x, weight, bias)
        finally:
            comfy.ops.uncast_bias_weight(self, weight, bias, stream)

    def _is_in_place(self, weight: Tensor, bias: Tensor | None, device: torch.device) -> bool:
        """Whether the host would only hand the tensors back, after a quarter of the time that the layer takes."""
        if weight.device != device or self.weight_function:
            return False
        return bias is None or (bias.device == device and not self.bias_function)

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert self.layout is not None, "a layer without a blob is the host's own by now"
        down = up = None
        if self._buffers:  # a layer that the host keeps on the CPU has its factors there as well
            bias = add_bias(bias, self.lora_tensor("lora_bias", x.device), x)
            down, up = self.lora_tensor("lora_down", x.device), self.lora_tensor("lora_up", x.device)
        layer, gelu = (weight, self.layout_text, bias), None if self.wrapped else self.gelu
        if self.lora is None or not self.lora.reads_input:
            sides = x.cut_at([part.columns for part in self.layout.parts]) if isinstance(x, Joined) else x
            options = {"gelu": gelu, "gelu_from": self.gelu_from, "shared": None if self.wrapped else self.shared}
            return apply_blob(*layer, sides, self.compute, lora_down=down, lora_up=up, **options)
        x = x.done() if isinstance(x, Joined) else x
        if gelu == "input":  # what is added reads it, too
            x = self._with_gelu(x if self.gelu_from == 0 else x.clone())
        if self.lora.scale != 1.0:
            out = apply_blob(weight, self.layout_text, None, x, self.compute)
        else:
            out = apply_blob(*layer, x, self.compute, lora_down=down, lora_up=up)
        out = add_lora(out, x, self.lora, self.lora_tensors(), bias)
        if gelu == "output":
            out = self._with_gelu(out)
        return out

    def _with_gelu(self, x: Tensor) -> Tensor:
        """A tensor whose columns from gelu_from on have gone through the GELU, where it is or in another's place."""
        if self.gelu_from == 0:
            return torch.nn.functional.gelu(x, approximate="tanh")
        activated = x[..., self.gelu_from :]
        activated.copy_(torch.nn.functional.gelu(activated, approximate="tanh"))
        return x

    def lora_tensor(self, name: str, device: torch.device) -> Tensor | None:
        tensor = self._buffers.get(name)
        return None if tensor is None else tensor.to(device)

    def lora_tensors(self) -> dict[str, Tensor]:
        """What the installed LoRAs need, by buffer name."""
        return {name: t for name, t in self._buffers.items() if t is not None and name.startswith("lora_")}

    def install_lora(self, plan: LoraPlan | None, tensors: dict[str, Tensor]) -> None:
        """Replace what LoRAs add; as buffers it moves with the module and is counted by the host."""
        for name in self.lora_tensors():
            del self._buffers[name]
            self._non_persistent_buffers_set.discard(name)
        self.lora = plan
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)


@cache
def operations(compute: str) -> type:
    """The namespace of layer classes that the host builds a model from, for one compute mode."""
    linear = type("SVDQuantLinear", (SVDQuantLinear,), {"compute": compute})
    layers = {"Linear": linear, "RMSNorm": KernelRMSNorm, "LayerNorm": KernelLayerNorm}
    return type("SVDQuantOperations", (comfy.ops.manual_cast,), layers)
