"""Attention by cuDNN for our MODELs, on GPUs where it is faster than the FlashAttention 2 that the host asks torch for.

The host tries torch's back ends in one fixed order, FlashAttention first, on every GPU. On an H200 cuDNN takes 0.44 ms
where FlashAttention takes 0.78 (24 heads, 4608 tokens of 128 channels), with the same error against float32. So our
MODELs carry the host's own `optimized_attention_override`, which asks for cuDNN where that would have been
FlashAttention's call, and hands every other call on unchanged: with a mask, of another dtype or head size, short ones,
and all calls once the user or another node has chosen an attention of their own. Nothing global is touched; other
models of the process compute as before.
"""

import inspect
import logging
import os

import comfy.ldm.modules.attention
import comfy.ops
import torch
from torch import Tensor

from ...svdq_core.runtime import prefers_cudnn_attention

logger = logging.getLogger("svdquant")

CHOICES = ("auto", "comfyui")
OPTIONS = "transformer_options"
OVERRIDE = "optimized_attention_override"  # among them; another node that sets it replaces ours
LEAST_CUDNN = 91501  # from this version on torch trusts cuDNN's attention to be its first choice
DEPRIORITIZED = "TORCH_CUDNN_SDPA_DEPRIORITIZED"  # torch's own environment variable: 1 takes that back

DEVICES = ("cuda",)
DTYPES = (torch.bfloat16, torch.float16)
# H200, torch 2.11, 4096 to 4608 tokens: cuDNN is 1.7 times as fast with heads of 72 and 80 channels, 1.9 with 64, 2.0
# with 128, 2.2 with 256. Shorter, 128 channels: 1.9 at 1536 tokens, 1.2 at 1024; 0.9 with 77 keys. A new size costs 35
# to 40 ms once.
LARGEST_HEAD = 256
LEAST_TOKENS = 1024  # queries, and keys
HANDED_ON = ("scale", "enable_gqa")  # what the host passes on to torch
IGNORED = (OPTIONS, "_inside_attn_wrapper", "low_precision_attention")  # what it passes on to nobody

MOST_REFUSED = 256  # sizes that are remembered; a forgotten one is tried once more

_refused: set[tuple] = set()  # calls that cuDNN took and could not do


def why_not_cudnn(device: torch.device) -> str | None:
    """Why attention on a device stays the host's choice, in words for the user; None if cuDNN is to be asked for."""
    host = comfy.ldm.modules.attention
    if not prefers_cudnn_attention(device):
        return "cuDNN is not known to be faster on this device"
    if host.optimized_attention is not host.attention_pytorch:
        return f"ComfyUI was told to use {host.optimized_attention.__name__}"
    if os.environ.get(DEPRIORITIZED) == "1" or not torch.backends.cuda.cudnn_sdp_enabled():
        return "torch was told not to use cuDNN's"
    if not hasattr(comfy.ops, "SDPA_BACKEND_PRIORITY"):
        return "this torch cannot put one back end before another"
    if (torch.backends.cudnn.version() or 0) < LEAST_CUDNN:
        return f"cuDNN {torch.backends.cudnn.version()} is older than {LEAST_CUDNN}"
    return None


def choose_attention(patcher, choice: str) -> str:
    """Give a MODEL the faster attention if the user wants that and the GPU has it.

    Args:
        patcher: a MODEL; its clones inherit what it is given. choice: one of CHOICES.

    Returns:
        Words for the status line; empty where there is nothing to choose from.
    """
    if not takes_override(patcher.model.diffusion_model):
        return ""
    device, options = patcher.load_device, patcher.model_options.setdefault(OPTIONS, {})
    if choice == "comfyui":
        return "attention as ComfyUI chooses (chosen by the user)"
    reason = why_not_cudnn(device)
    if reason is not None:
        logger.debug("attention is left to ComfyUI: %s", reason)
        return f"attention as ComfyUI chooses ({reason})" if prefers_cudnn_attention(device) else ""
    if options.setdefault(OVERRIDE, attend) is not attend:
        return "attention as another node chose"
    return "attention cuDNN (faster than FlashAttention 2 on this GPU)"


def takes_override(model: torch.nn.Module) -> bool:
    """Whether the host's code for a model hands its options on at all; PixArt's calls attention without them."""
    classes = {base for module in model.modules() for base in type(module).__mro__ if base is not torch.nn.Module}
    functions = (f for found in classes for f in vars(found).values() if inspect.isfunction(f))
    return any(OPTIONS in _words(f.__code__) for f in functions)


def _words(code) -> set:
    """Names of a function's arguments and variables, its strings, and the keywords that it calls others with."""
    words = set(code.co_varnames)
    for constant in code.co_consts:
        if isinstance(constant, (str, tuple)):
            words.update((constant,) if isinstance(constant, str) else constant)
    return words


def attend(function, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, *more, **options):
    """The host's override of attention: cuDNN where it suits the call, else function(...) as if this were not here.

    Args:
        function: the host's attention that was called, without its wrapper.
        q, k, v: (B, tokens, heads * channels), or with skip_reshape (B, heads, tokens, channels).
    """
    if mask is None and not more and function is _hosts_own() and _suits(q, k, v, heads, options):
        if torch.compiler.is_compiling():
            return _attend_cudnn(q, k, v, heads, options)
        if not prefers_cudnn_attention(q.device):  # a copy of the model on another GPU, by the host's multi-GPU nodes
            return function(q, k, v, heads, mask, *more, **options)
        call = q.dtype, q.shape, q.stride(), k.shape, k.stride(), v.shape, v.stride()
        if not _refused or call not in _refused:
            try:
                return _attend_cudnn(q, k, v, heads, options)
            except torch.cuda.OutOfMemoryError:
                raise  # FlashAttention needs no less
            except RuntimeError as error:  # torch's checks let it through, and cuDNN has no plan for it
                if len(_refused) >= MOST_REFUSED:
                    _refused.clear()
                _refused.add(call)
                logger.info("cuDNN's attention does not take %s (%s); ComfyUI's is used.", tuple(q.shape), error)
    return function(q, k, v, heads, mask, *more, **options)


def _hosts_own():
    """The host's attention that leaves the choice to torch, as an override is handed it."""
    return comfy.ldm.modules.attention.attention_pytorch.__wrapped__


def _suits(q: Tensor, k: Tensor, v: Tensor, heads: int, options: dict) -> bool:
    """Whether cuDNN was measured to be the faster one for a call like this."""
    known = {"attn_precision", "skip_reshape", "skip_output_reshape", *HANDED_ON, *IGNORED}
    if q.device.type not in DEVICES or q.dtype not in DTYPES or not options.keys() <= known:
        return False
    split = options.get("skip_reshape", False)
    channels = q.shape[-1] if split else q.shape[-1] // heads
    if channels % 8 or channels > LARGEST_HEAD or k.shape[-1] != v.shape[-1]:
        return False
    if q.shape[-1] != k.shape[-1]:  # fewer heads of keys than of queries, not split yet
        return False
    if split and k.shape[1] != q.shape[1] and not options.get("enable_gqa"):
        return False
    few = q.shape[0] <= comfy.ldm.modules.attention.SDP_BATCH_LIMIT
    return few and q.shape[-2] >= LEAST_TOKENS and k.shape[-2] >= LEAST_TOKENS


def _attend_cudnn(q: Tensor, k: Tensor, v: Tensor, heads: int, options: dict) -> Tensor:
    """The host's attention_pytorch without a mask, cuDNN first."""
    if not options.get("skip_reshape", False):
        q, k, v = (t.reshape(t.shape[0], -1, heads, t.shape[-1] // heads).transpose(1, 2) for t in (q, k, v))
    out = cudnn_first(q, k, v, **{name: options[name] for name in HANDED_ON if name in options})
    if options.get("skip_output_reshape", False):
        return out
    return out.transpose(1, 2).reshape(out.shape[0], -1, heads * out.shape[-1])


def cudnn_first(q: Tensor, k: Tensor, v: Tensor, **extra) -> Tensor:
    """torch's attention of (B, heads, tokens, channels), by cuDNN unless torch finds that it cannot take the call."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    hosts = getattr(comfy.ops, "SDPA_BACKEND_PRIORITY", list(SDPBackend.__members__.values()))
    order = [SDPBackend.CUDNN_ATTENTION, *(b for b in hosts if b != SDPBackend.CUDNN_ATTENTION)]
    with sdpa_kernel(order, set_priority=True):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=0.0, is_causal=False, **extra)
