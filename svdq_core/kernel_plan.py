"""Which kernels a loaded model can ask for, and their compilation before it does.

Layers run on meta tensors, which have no memory, for one number of rows of every class that tiles.row_class knows, and
with LoRAs of every rank up to RANKS: what they would launch is the plan. The likeliest sizes come first.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.gpus import Generation, generation, processors, why_no_triton
from ..kernels.ladder import logger
from ..kernels.launching.ahead import Batch, compile_ahead, note_compiled, threads, was_compiled
from ..kernels.launching.dry_run import Wanted, launches_noted
from ..kernels.tiles import GEMV_ROWS, row_class
from .apply_layer import apply_blob
from .blob import BlobLayout
from .row_ops import layer_norm, rms_norm
from .shared_input import SharedInput

# Numbers of rows, the likeliest first: images of 1024 pixels with and without 512 text tokens, the text, modulation;
# other sizes and batches of those; one of every class.
FIRST = (4096, 4608, 512, 1)
LIKELY = (1024, 1536, 2304, 2816, 9216, 2, 4)
OTHERS = (256, 77, 32, 16, *range(128, 20000, 128))
RANKS = (16, 64, 128)  # of LoRAs: beside a branch of rank 32, one of every width up to 160 that kernels tell apart


class LayerForm(NamedTuple):
    """What decides which kernels a layer runs, beside its input.

    Args:
        layout: BlobLayout.to_json of it. bias: its dtype; None: it has none. gelu, gelu_from: as apply_blob.
    """

    layout: str
    bias: torch.dtype | None
    gelu: str | None
    gelu_from: int


class NormForm(NamedTuple):
    """A norm in front of layers: over `width` channels of each head with a weight, or of each token without.

    Args:
        eps: None: torch's own choice.
    """

    width: int
    eps: float | None
    of_heads: bool


class ModelForm(NamedTuple):
    """What decides which kernels a model can ask for.

    Args:
        layers, norms: each kind once. compute: one of COMPUTE_MODES. dtype: of the activations.
    """

    layers: tuple[LayerForm, ...]
    norms: tuple[NormForm, ...]
    compute: str
    dtype: torch.dtype


def plan_kernels(
    model: ModelForm, *, gpu: Generation, processors: int, device: torch.device
) -> Iterator[dict[tuple, Wanted]]:
    """Launches by key, in portions, the likeliest first; what comes in several of them is the same.

    Args:
        gpu, processors, device: see dry_run.launches_noted.
    """
    forms = [(form, _of_each_class(form, gpu, processors)) for form in model.layers]
    for rank in (0, *RANKS):
        for rows in (FIRST, LIKELY, OTHERS):
            with launches_noted(gpu, processors, device) as found:
                for norm in model.norms if not rank and rows is FIRST else ():
                    _try(run_norm, norm, model.dtype)
                for count in rows:
                    for form in (form for form, counts in forms if count in counts):
                        _try(run_layer, form, count, rank, model.compute, model.dtype)
            # products take the longest to compile, so they begin first
            yield dict(sorted(found.items(), key=lambda item: "gemm" not in item[1].kernel.fn.__name__))


def _try(run: Callable[..., None], *arguments: object) -> None:
    """What cannot run on meta tensors, such as an operation of others, is left to its launch."""
    try:
        run(*arguments)
    except Exception as error:  # noqa: BLE001  (it may fail in any way)
        logger.debug("No kernel is compiled ahead for %s: %s", arguments[0], error, exc_info=error)


@cache
def _layout(text: str) -> BlobLayout:
    return BlobLayout.from_json(text)


def _of_each_class(form: LayerForm, gpu: Generation, processors: int) -> set[int]:
    """The first number of rows of each class that a layer's calls can be of; modulation reads one for each picture."""
    parts = _layout(form.layout).parts
    outputs = sorted({part.rows[1] - part.rows[0] for part in parts})
    modulates = all(part.scheme == "awq" for part in parts)
    classes: dict[tuple, int] = {}
    for count in (*FIRST, *LIKELY, *OTHERS):
        if modulates == (count <= GEMV_ROWS):
            classes.setdefault(tuple(row_class(count, n, gpu, processors) for n in outputs), count)
    return set(classes.values())


def _meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def run_layer(form: LayerForm, rows: int, rank: int, compute: str, dtype: torch.dtype) -> None:
    """Run a layer on meta tensors with a LoRA of a rank, 0 for none."""
    layout = _layout(form.layout)
    places = [place for part in layout.parts for place in part.slices.values()]
    ends = [place.offset + _meta(*place.shape, dtype=getattr(torch, place.dtype)).nbytes for place in places]
    blob = _meta(max(ends), dtype=torch.uint8)
    bias = None if form.bias is None else _meta(layout.out_features, dtype=form.bias)
    lora_down = lora_up = None
    if rank:
        lora_down, lora_up = (_meta(n, rank, dtype=dtype) for n in (layout.in_features, layout.out_features))
    x = _meta(rows, layout.in_features, dtype=dtype)
    lora = {"lora_down": lora_down, "lora_up": lora_up}
    gelu = {"gelu": form.gelu, "gelu_from": form.gelu_from}
    apply_blob(blob, form.layout, bias, x, compute, **lora, **gelu, shared=SharedInput())


def run_norm(norm: NormForm, dtype: torch.dtype) -> None:
    """Run a norm on meta tensors."""
    if norm.of_heads:  # of queries, where they stand in a wider matrix of queries, keys and values
        x = _meta(1, FIRST[0], 3, 24, norm.width, dtype=dtype).permute(2, 0, 3, 1, 4)[0]
        rms_norm(x, _meta(norm.width, dtype=dtype), norm.eps)
    else:
        assert norm.eps is not None, "torch's layer norm has one"
        layer_norm(_meta(1, FIRST[0], norm.width, dtype=dtype), norm.eps)


def compile_model(model: ModelForm, device: torch.device) -> threading.Thread | None:
    """Begin to compile what a model can ask for in the background, unless that was done before on this computer.

    Returns:
        the thread that plans; None where there is nothing to do.
    """
    if device.type != "cuda" or model.dtype == torch.float32 or why_no_triton(device) is not None or threads() < 1:
        return None
    device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)

    def plan() -> None:
        try:
            _compile(model, device)
        except Exception as error:  # noqa: BLE001  (kernels are then compiled when they are launched)
            logger.debug("No kernels are compiled ahead: %s", error, exc_info=error)

    thread = threading.Thread(target=plan, name="svdquant-plan")
    thread.start()
    return thread


def _compile(model: ModelForm, device: torch.device) -> None:
    where = {"gpu": generation(device), "processors": processors(device), "device": device}
    known = f"{model} {where['gpu'].name} {where['processors']} {_sources()}"
    digest = hashlib.sha256(known.encode()).hexdigest()
    if was_compiled(digest):
        return
    batch = Batch(torch.cuda.get_device_name(device), lambda: note_compiled(digest))
    for wanted in plan_kernels(model, **where):
        compile_ahead(wanted, device, batch)
    batch.end()


@cache
def _sources() -> str:
    """What else decides which kernels there are: their sources, and the versions that compile them."""
    digest = hashlib.sha256(torch.__version__.encode())
    for file in sorted(Path(__file__).parents[1].joinpath("kernels").rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
