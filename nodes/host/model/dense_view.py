"""What others read of a packed layer: a tensor that has the shape of the dense weight, and its values once asked for.

Other packs, and the host's own hooks and ControlLoRAs, read weights from a model's state dict, look at their shapes,
and build patches of them. As bytes a packed weight would have a shape that fits nothing. A view is worked out anew for
each operation, where that wants it, and kept by none; what asks for memory itself (numpy, safetensors) gets a tensor
that lives as long as the view.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

_aten = torch.ops.aten
# what can give more digits than the view shows
_COPIES = (_aten._to_copy, _aten.to, _aten.copy_)
_TO_KEYWORDS = (_aten._to_copy.default, _aten.to.dtype_layout)  # with dtype=None for the dtype that there is
# what looks at the shape alone
_LIKE = (
    *(_aten.empty_like.default, _aten.zeros_like.default, _aten.ones_like.default, _aten.full_like.default),
    *(_aten.rand_like.default, _aten.randn_like.default),
)


class DenseView(Tensor):
    """A tensor without memory.

    Args:
        shape, dtype, device: as shown.
        make: (device) -> the values on that device, float32.
        nbytes: what the layer really takes, for whoever counts.
    """

    @staticmethod
    def __new__(
        cls,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        make: Callable[[torch.device], Tensor],
        nbytes: int,
    ):
        return Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)

    def __init__(self, shape, dtype, device, make: Callable[[torch.device], Tensor], nbytes: int):
        self._make, self._nbytes = make, nbytes
        self._held: Tensor | None = None  # for those who asked for its memory

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _LIKE:
            kwargs = {"dtype": args[0].dtype, "device": args[0].device} | {k: v for k, v in kwargs.items() if v}
            return func(torch.empty(args[0].shape, device="meta"), *args[1:], **kwargs)
        if func is _aten.detach.default:
            return args[0]
        others = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        device = next((leaf.device for leaf in others if not isinstance(leaf, DenseView) and leaf.ndim), None)
        device = kwargs.get("device") or device
        exact = func.overloadpacket in _COPIES
        if func in _TO_KEYWORDS and kwargs.get("dtype") is None:
            kwargs["dtype"] = others[0].dtype
        args, kwargs = tree_map_only(DenseView, lambda view: view.values(device, exact), (args, kwargs))
        return func(*args, **kwargs)

    def values(self, device: torch.device | None = None, exact: bool = False) -> Tensor:
        """A plain tensor; float32 if exact, else of the dtype shown."""
        place, dtype = torch.device(device or self.device), torch.float32 if exact else self.dtype
        if place.type == "meta":
            return torch.empty(self.shape, dtype=dtype, device=place)
        with torch.inference_mode():
            return self._make(place).to(dtype)

    @property
    def nbytes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._nbytes

    def _memory(self) -> Tensor:
        if self._held is None:
            self._held = self.values().contiguous()
        return self._held

    def data_ptr(self) -> int:
        return self._memory().data_ptr()

    def untyped_storage(self):
        return self._memory().untyped_storage()

    def numpy(self, **options):  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._memory().numpy(**options)

    def tolist(self):
        return self._memory().tolist()

    def __deepcopy__(self, _memo):
        return self.values().clone()

    def __reduce_ex__(self, protocol):
        return self.values().__reduce_ex__(protocol)
