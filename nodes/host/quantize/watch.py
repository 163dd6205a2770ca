"""One forward of a model without its large weights: every Linear notes its input and answers with noise.

Shapes, order and kinds of inputs are then those of the real model, whatever it weighs: a 33 B model takes seconds on a
CPU and no memory. Convolutions answer with noise as well; everything between runs as ComfyUI wrote it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .noise_conditions import WidthError
from .replica import CONVOLUTIONS

ACTIVATIONS = ("gelu", "silu", "sigmoid", "tanh", "relu")
PRODUCTS = ("mul", "mul_", "__mul__", "__imul__", "__rmul__", "addcmul", "addcmul_")
# what leaves values, and the kinds of channels, as they are
KEEPING = (
    *("to", "contiguous", "clone", "nan_to_num", "nan_to_num_", "reshape", "view", "dropout", "clamp", "float", "type"),
    *("flatten", "unflatten", "squeeze", "unsqueeze", "type_as", "transpose", "permute", "movedim", "expand", "half"),
    *("index_select", "__getitem__", "narrow", "index", "detach", "bfloat16", "requires_grad_"),
)
PRODUCTS_WITH_WEIGHTS = ("linear", "matmul", "__matmul__", "mm", "addmm", "bmm", "embedding", "einsum")
BANK = 1 << 20  # numbers of the noise that all layers answer with

Tag = str | tuple[tuple[Any, int], ...] | None


@dataclass
class Seen:
    """What was noted about one Linear.

    Args:
        calls: rows of each. prepares: it was called before the step. tags: where its input came from, each once.
        input_of: see TracedLinear. context: it read what the same Linear of another block had read.
    """

    calls: list[int] = field(default_factory=list)
    prepares: bool = False
    tags: list[Tag] = field(default_factory=list)
    input_of: str = ""
    context: bool = False


class Watch(TorchFunctionMode):
    """Args:
    network: of replicate(), used by this object alone until it is closed.
    blocks: block name -> name of its stack.
    """

    def __init__(self, network: nn.Module, blocks: dict[str, str]):
        super().__init__()
        self.seen: dict[str, Seen] = {}
        self.bypassed: set[str] = set()
        self.preparing = False
        self._generator = torch.Generator().manual_seed(0)
        self._bank = torch.randn(BANK, generator=self._generator)
        self._tags: dict[int, Tag] = {}
        self._here: list[tuple[str, Tensor, int]] = []  # inputs of the block that runs
        self._block = ""
        self._first: dict[tuple[str, str], tuple[str, Tensor, int]] = {}  # of each Linear, in the first of its blocks
        self._modules = {id(m.weight): name for name, m in network.named_modules() if isinstance(m, nn.Linear)}
        self._replaced: list[nn.Module] = []
        for name, module in network.named_modules():
            if isinstance(module, nn.Linear):
                block = block_of(name, blocks)
                self._replace(module, self._linear(name, module, block, blocks.get(block, "")))
            elif isinstance(module, CONVOLUTIONS):
                self._replace(module, self._convolution(name, module))

    def close(self) -> None:
        """Give the network its own forwards back."""
        for module in self._replaced:
            del module.__dict__["forward"]
        self._here, self._first, self._tags = [], {}, {}

    def _replace(self, module: nn.Module, forward: Callable) -> None:
        module.__dict__["forward"] = forward
        self._replaced.append(module)

    def _linear(self, name: str, module: nn.Linear, block: str, stack: str) -> Callable:
        rest = name[len(block) + 1 :]

        def forward(x: Tensor, *_: Any) -> Tensor:
            if x.shape[-1] != module.in_features:
                raise WidthError(name, x.shape[-1], module.in_features)
            seen = self.seen.setdefault(name, Seen())
            if self.preparing:
                seen.prepares = True
            else:
                self._note(seen, name, x, block, (stack, rest))
            return self._noise((*x.shape[:-1], module.out_features), x)

        return forward

    def _note(self, seen: Seen, name: str, x: Tensor, block: str, kind: tuple[str, str]) -> None:
        seen.calls.append(x.numel() // x.shape[-1])
        tag = self._tag(x)
        if tag not in seen.tags:
            seen.tags.append(tag)
        if not block:
            return
        if block != self._block:
            self._block, self._here = block, []
        same = next((n for n, other, version in self._here if _same(other, x) and version == x._version), name)
        seen.input_of = seen.input_of or same
        self._here.append((name, x, x._version))
        other_block, first, version = self._first.setdefault(kind, (block, x, x._version))
        if other_block != block and _same(first, x) and version == x._version:
            seen.context = self.seen[f"{other_block}.{kind[1]}"].context = True

    def _convolution(self, name: str, module: nn.Module) -> Callable:
        bare = next(kind for kind in CONVOLUTIONS if isinstance(module, kind))

        def forward(x: Tensor, *arguments: Any, **named: Any) -> Tensor:
            expected = module.in_channels  # type: ignore[attr-defined]
            found = x.shape[-1 - len(module.kernel_size)]  # type: ignore[arg-type]
            if found != expected:
                raise WidthError(name, found, int(expected))  # type: ignore[arg-type]
            with torch._C.DisableTorchFunctionSubclass():
                kernel = torch.empty_like(module.weight, dtype=x.dtype, device="meta")  # type: ignore[arg-type]
                if hasattr(bare, "_conv_forward"):
                    shape = bare._conv_forward(module, x.to("meta"), kernel, None).shape  # type: ignore[attr-defined]
                else:
                    function = getattr(nn.functional, f"conv_transpose{len(module.kernel_size)}d")  # type: ignore[arg-type]
                    shape = function(
                        x.to("meta"), kernel, None, module.stride, module.padding, module.output_padding, module.groups
                    ).shape
            return self._noise(tuple(shape), x)

        return forward

    def attention(
        self, original: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, *_: Any, **named: Any
    ) -> Tensor:
        """In place of ComfyUI's attention: noise of the shape of its result; see wrap_attn there."""
        reshaped, kept = named.get("skip_reshape", False), named.get("skip_output_reshape", False)
        batch, tokens = (
            q.shape[0],
            q.shape[2 if reshaped else 1],
        )  # (batch, heads, tokens, width) or (batch, tokens, ...)
        width = v.shape[-1] if reshaped else q[0, 0].numel() // heads
        shape = (batch, heads, tokens, width) if kept else (batch, tokens, heads * width)
        return self._noise(shape, q)

    def _noise(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        count = 1
        for size in shape:
            count *= size
        if count > BANK:
            out = self._bank.repeat(-(-count // BANK))[:count]
        else:
            start = int(torch.randint(BANK - count + 1, (), generator=self._generator))
            out = self._bank[start : start + count].clone()
        return out.to(like.device, like.dtype).reshape(shape)

    def _tag(self, tensor: Any) -> Tag:
        return self._tags.get(_place(tensor)) if isinstance(tensor, Tensor) and not tensor.is_meta else None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__", "size", "dim", "stride", "data_ptr", "numel", "is_floating_point"):
            return func(*args, **kwargs)
        if name in ("layer_norm", "rms_norm") and len(args) > 1:
            x, expected = args[0], args[1][-1]
            if x.shape[-1] != expected:
                raise WidthError(name, x.shape[-1], int(expected))
        args, kwargs = self._with_memory(name, args), {k: self._solid(name, v) for k, v in kwargs.items()}
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and not out.is_meta:
            self._mark(name, out, args, kwargs)
        elif isinstance(out, (tuple, list)):
            self._mark_parts(name, out, args)
        return out

    def _with_memory(self, name: str, args: Iterable[Any]) -> tuple[Any, ...]:
        return tuple(self._solid(name, a) for a in args)

    def _solid(self, name: str, value: Any) -> Any:
        """A weight without memory that is read past its layer, as numbers."""
        if not isinstance(value, Tensor) or not value.is_meta:
            return value
        owner = self._modules.get(id(value))
        if owner is not None and name in PRODUCTS_WITH_WEIGHTS:
            self.bypassed.add(owner)
        return torch.full((1,), 0.02, dtype=value.dtype).expand(value.shape)

    def _mark(self, name: str, out: Tensor, args: tuple, kwargs: dict) -> None:
        place, bare = _place(out), name.rstrip("_") if not name.startswith("__") else name
        operands = [a for a in args if isinstance(a, Tensor)]
        if bare in ACTIVATIONS:
            self._tags[place] = bare
        elif name in PRODUCTS:
            found = [self._tag(a) for a in operands if a.numel() == out.numel()]
            self._tags[place] = "gated" if len(found) > 1 and any(tag in ACTIVATIONS for tag in found) else None
        elif name in ("cat", "concat") and args and isinstance(args[0], (tuple, list)):
            joined, *more = args
            dim = kwargs.get("dim", more[0] if more else 0)
            parts = [(self._tag(part), part.shape[-1]) for part in joined]
            if dim in (-1, out.ndim - 1):
                self._tags[place] = tuple(parts)
            else:
                kinds = {tag for tag, _ in parts}
                self._tags[place] = kinds.pop() if len(kinds) == 1 else None
        elif name in KEEPING and operands:
            if place != _place(operands[0]):
                self._tags[place] = self._tag(operands[0])
        elif name.endswith("_") or not any(place == _place(a) for a in operands if not a.is_meta):
            self._tags[place] = None

    def _mark_parts(self, name: str, out: Iterable[Any], args: tuple) -> None:
        """Results of several tensors: views keep the kind of what they are views of, others have none."""
        places = {_place(a) for a in args if isinstance(a, Tensor) and not a.is_meta}
        for tensor in out:
            if isinstance(tensor, Tensor) and not tensor.is_meta and _place(tensor) not in places:
                self._tags[_place(tensor)] = None


def block_of(name: str, blocks: Iterable[str]) -> str:
    """The block that a module lies in; "" if in none."""
    pieces = name.split(".")
    return next((b for i in range(len(pieces), 0, -1) if (b := ".".join(pieces[:i])) in blocks), "")


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.data_ptr(), a.shape, a.stride()) == (b.data_ptr(), b.shape, b.stride())
