"""Layers that read one tensor quantize and project it once: q, k and v; gate and up.

A file says by name which tensor a layer reads (QuantizedLayer.input); layers of one name have the same smoothing and
proj_down, bit for bit. A model has one slot, which holds what the last of its layers made of its input. The next one
takes it over if it reads the same tensor under the same name in the same way; any other layer empties it. Results are
the bits that each layer would have computed alone. Every layer keeps its own rows, and layers with a LoRA, whose
projection is another, run alone.
"""

from collections.abc import Callable
from weakref import ref

import torch
from torch import Tensor

from ..kernels.epilogue import NOTHING_MORE, Epilogue
from ..kernels.ladder import is_elsewhere, logger, steps_left_behind
from ..kernels.launching.replay import Call, replay
from ..kernels.layer_call import LayerCall
from ..kernels.paths.layer_paths import first_path
from ..kernels.paths.path import readable_by
from .blob import BlobLayout
from .padding import widen

Quantized = tuple[Tensor, ...]


class SharedInput:
    """The slot of one model: what was made of the tensor that its last layer read."""

    def __init__(self):
        self._key: tuple = ()
        self._x: ref[Tensor] | None = None
        self._quantized: Quantized = ()
        self._made: dict[tuple, str | None] = {}  # situation -> what its first path makes

    def __deepcopy__(self, _memo) -> "SharedInput":
        return SharedInput()  # another model's slot; and a weak reference cannot be copied

    def empty(self) -> None:
        """Forget what is held, and let its memory go."""
        self._key, self._x, self._quantized = (), None, ()

    def made_by(self, situation: tuple, call: Callable[[], LayerCall]) -> str | None:
        """What the first path of a call makes of its input, None if nothing that could be shared."""
        situation = *situation, steps_left_behind()
        if situation not in self._made:
            if len(self._made) >= 4096:
                self._made.clear()
            one = call()
            self._made[situation] = first_path(one).makes(one)
        return self._made[situation]

    def take(self, key: tuple, x: Tensor, make: Callable[[], Quantized]) -> Quantized:
        """What is held for a key and this very tensor; else what `make` makes, which is then held."""
        if self._key != key or self._x is None or self._x() is not x:
            self.empty()
            self._quantized = make()
            self._key, self._x = key, ref(x)
        return self._quantized


def can_share(layout: BlobLayout) -> bool:
    """Whether a layer is one that may take over what another made of its input."""
    return bool(layout.input) and len(layout.parts) == 1 and layout.parts[0].scheme != "awq"


class SharedCall:
    """A layer's call on an input that others read as well.

    Args:
        text: the layer's layout as JSON. others as apply_blob.
    """

    def __init__(self, layout: BlobLayout, text: str, blob: Tensor, *, bias: Tensor | None, x: Tensor, compute: str):
        self._layout, self._text, self._blob, self._bias, self._x, self._compute = layout, text, blob, bias, x, compute

    def run(self, slot: SharedInput, gelu: str | None, gelu_from: int) -> Tensor | None:
        """Its result; None where its first path makes nothing that could be shared."""
        x, blob, bias = self._x, self._blob, self._bias
        if is_elsewhere(x.device):
            return None

        def call(read: bool = False) -> LayerCall:
            """The call; its input is there only if it is to be read."""
            part = (layer := self._layout.read(blob, bias, as_it_lies=True)).parts[0]
            epilogue = Epilogue(gelu_from=gelu_from) if gelu == "output" else NOTHING_MORE
            own = part.get("bias")
            added = layer.bias if own is None else own if layer.bias is None else layer.bias + own
            rows = x.reshape(-1, x.shape[-1])
            rows = rows if rows.stride(1) == 1 else rows.contiguous()
            if rows.shape[1] != part.width:
                rows = widen(rows, part.width, 1) if read else rows.new_empty((len(rows), part.width))
            settings = part.scheme, self._compute, part.factors, added, part.act_unsigned, gelu == "input"
            return LayerCall(rows, part.tensors, *settings, epilogue)

        situation = self._text, self._compute, gelu, gelu_from, tuple(x.shape), x.dtype, x.device
        made = slot.made_by(situation, call)
        if made is None:
            return None

        def quantize() -> Quantized:
            done = replay(("quantize", made, *situation), (x, blob))
            if isinstance(done, Call):
                with done as recorded:
                    one = call(read=True)
                    result = recorded.result = first_path(one).quantize(one)
                return result
            assert isinstance(done, tuple), "as it was recorded"
            return done

        key = self._layout.input, made, gelu == "input", self._layout.parts[0].act_unsigned
        quantized = slot.take(key, x, quantize)
        done = replay(("multiply", made, *situation), (*quantized, blob, bias))
        if isinstance(done, Call):
            with done as recorded:
                one = call()
                path = first_path(one)
                out = path.multiply(readable_by(path, one), quantized)
                done = recorded.result = out.view(*x.shape[:-1], self._layout.out_features)
        assert isinstance(done, Tensor), "as it was recorded"
        return done


def run_shared(call: SharedCall, slot: SharedInput, gelu: str | None, gelu_from: int) -> Tensor | None:
    """SharedCall.run, or None, the slot emptied, where something fails: alone, the layer steps down its ladder."""
    try:
        found = call.run(slot, gelu, gelu_from)
    except torch.cuda.OutOfMemoryError:
        slot.empty()
        raise
    except Exception as error:  # noqa: BLE001  (kernels fail in any way; whether it comes again, the ladder shows)
        logger.debug("A shared input could not be used: %s", error)
        found = None
    if found is None:
        slot.empty()
    return found
