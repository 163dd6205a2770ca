"""Plans the kernels of a FLUX on GPUs that are not here, and says which ones other sizes, batches and LoRAs ask for.

    PYTHONPATH=tools python tests/svdq_core/plan_coverage.py

A program and not a fixture, because the interpreter that the other tests use must not be on when Triton is imported.
Prints JSON: case -> {"planned": kernel -> count, "missing": [what was not planned]}.
"""

import json
import random
import sys
from collections import Counter
from itertools import accumulate

import torch

from svdquant_pack.kernels.gpus import GENERATIONS
from svdquant_pack.kernels.launching.dry_run import launches_noted
from svdquant_pack.svdq_core import kernel_plan
from svdquant_pack.svdq_core.blob import BlobLayout, BlobPart, BlobSlice
from svdquant_pack.svdq_core.kernel_plan import LayerForm, ModelForm, NormForm

CASES = [("sm_80", "int4", "w4a4"), ("sm_89", "int4", "w4a4"), ("sm_89", "int4", "w4a8"), ("sm_90", "int4", "w4a8")]
CASES += [("sm_90", "int4", "w4a16"), ("sm_90", "nvfp4", "w4a8"), ("sm_120", "nvfp4", "w4a4")]
CASES += [("gfx942", "int4", "w4a8"), ("gfx1100", "int4", "w4a16")]
PROCESSORS = {"sm_80": 108, "sm_89": 128, "sm_90": 132, "sm_120": 170, "gfx942": 304, "gfx1100": 96}
HERE = torch.device("cuda", 0)
HIDDEN, RANK = 3072, 32
SIDES = [
    (512, 512),
    (640, 640),
    (768, 768),
    (832, 1216),
    (1024, 1024),
    (1152, 896),
    (1024, 1000),
    (1536, 1536),
    (2048, 2048),
]
TEXTS, BATCHES, LORAS = (0, 77, 256, 512), (1, 2, 3, 4), (0, 1, 4, 16, 20, 32, 48, 64, 100, 128)


def part(scheme: str, rows: tuple[int, int], columns: tuple[int, int], start: int, unsigned: bool = False) -> BlobPart:
    """A part as a model of w4a8 keeps it, its tensors one behind the other."""
    n, k = rows[1] - rows[0], columns[1] - columns[0]
    group = 16 if scheme == "nvfp4" else 64
    tensors: dict[str, tuple[tuple[int, ...], str]] = {"qweight": ((n, k // 2), "int8")}
    tensors["wscales"] = (k // group, n), "float8_e4m3fn" if scheme == "nvfp4" else "bfloat16"
    if scheme == "awq":
        tensors["wzeros"] = tensors["wscales"]
    else:
        tensors |= {"smooth_factor": ((k,), "bfloat16"), "channel_scales": ((n,), "float32")}
        tensors |= {"proj_down": ((k, RANK), "bfloat16"), "proj_up": ((n, RANK), "bfloat16")}
    if scheme == "nvfp4":
        tensors |= {"wtscale": ((1,), "float32")}
    sizes = [torch.empty(shape, dtype=getattr(torch, t), device="meta").nbytes for shape, t in tensors.values()]
    places = accumulate((-(-size // 256) * 256 for size in sizes), initial=start)
    slices = {name: BlobSlice(at, *of) for (name, of), at in zip(tensors.items(), places, strict=False)}
    return BlobPart(scheme, rows, columns, unsigned, slices)


def form(
    scheme: str, n: int, k: int, *, gelu_from: int | None = None, unsigned: bool = False, of: str = ""
) -> LayerForm:
    """A layer of one part."""
    layout = BlobLayout(k, n, (part(scheme, (0, n), (0, k), 0, unsigned),), of)
    return LayerForm(layout.to_json(), torch.bfloat16, None if gelu_from is None else "output", gelu_from or 0)


def flux(scheme: str) -> list[LayerForm]:
    """The layers of FLUX.1, and one that shares its input as in other families."""
    h, end = HIDDEN, 1 << 30
    parts = part(scheme, (0, h), (0, h), 0), part(scheme, (0, h), (h, 5 * h), end, unsigned=True)
    two = LayerForm(BlobLayout(5 * h, h, parts).to_json(), torch.bfloat16, None, 0)
    modulation = form("awq", 6 * h, h), form("awq", 3 * h, h)
    plain = form(scheme, 3 * h, h), form(scheme, h, h), form(scheme, h, 4 * h, unsigned=True)
    folded = form(scheme, 4 * h, h, gelu_from=0), form(scheme, 7 * h, h, gelu_from=3 * h)
    return [*modulation, *plain, *folded, two, form(scheme, h, h, of="shared")]


def rows_of(choose: random.Random) -> int:
    """Rows of a layer's input in some picture, its text, or both."""
    width, height = choose.choice(SIDES)
    image, text = (width // 16) * -(-height // 16), choose.choice(TEXTS)
    return choose.choice(BATCHES) * choose.choice([image + text, image, text or image])


def check(gpu: str, scheme: str, mode: str, count: int) -> dict:
    """Plan, and compare with `count` calls of each layer."""
    norms = NormForm(128, 1e-6, True), NormForm(HIDDEN, 1e-6, False)
    model = ModelForm(tuple(flux(scheme)), norms, mode, torch.bfloat16)
    row = next(row for row in GENERATIONS if row.name == gpu)
    where = {"gpu": row, "processors": PROCESSORS[gpu], "device": HERE}
    planned = {}
    for portion in kernel_plan.plan_kernels(model, **where):
        planned |= portion
    choose, missing = random.Random(0), set()
    for layer in model.layers:
        modulates = '"awq"' in layer.layout
        for _ in range(count):
            rows, lora = choose.choice(BATCHES) if modulates else rows_of(choose), choose.choice(LORAS)
            with launches_noted(**where) as asked:
                kernel_plan.run_layer(layer, rows, lora, mode, torch.bfloat16)
            missing |= {
                f"{w.kernel.fn.__name__} {rows} rows, LoRA {lora}: {w.constants}"
                for key, w in asked.items()
                if key not in planned
            }
    kernels = Counter(wanted.kernel.fn.__name__ for wanted in planned.values())
    return {"planned": dict(kernels), "missing": sorted(missing)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps({" ".join(case): check(*case, count=60) for case in CASES}, indent=1))
