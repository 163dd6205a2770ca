"""One PixArt-Sigma picture, from seeded random weights: it shows that the whole path runs, not what it can draw.

The host fixes PixArt's width at 1152, so even one block is too large to ship. Weights and autoencoder are made on the
spot; the pictures are noise, and only the latents are compared.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..svdq_core.checkpoint.save import save_tensors
from .check import Check
from .client import Client, WorkflowOutcome
from .metrics import is_identical, relative_error

MODEL = "demo_pixart_random.safetensors"
HIDDEN = 1152
CAPTION = 4096
WIDTH, LATENT = 64, 4  # of the autoencoder
OTHER_SEED = 1001
_SEED = 7
_BIAS_STD = 0.02
# The last layer speaks louder than the rest, so that the final latent is what the model said and not the first noise.
_OUTPUT_GAIN = 4.0


@dataclass(frozen=True)
class PixartResult:
    """What came of the PixArt run.

    Args:
        path: of the quantized file.
        error: relative error of the quantized latent against BF16.
        floor: relative error of BF16 with another seed.
        bf16, quantized: both pictures, of noise.
        report: what SVDQuantQuantizeModel told the user.
    """

    source: Path
    path: Path
    error: float
    floor: float
    bf16: WorkflowOutcome
    quantized: WorkflowOutcome
    report: str


def install(base: Path) -> Path:
    """Write the model and its autoencoder under BASE/models; return the model's path."""
    models = base / "models"
    for name, weights in {
        f"diffusion_models/{MODEL}": random_pixart(),
        "vae_approx/taesdxl_encoder.safetensors": random_autoencoder(encoder=True),
        "vae_approx/taesdxl_decoder.safetensors": random_autoencoder(encoder=False),
    }.items():
        save_tensors(models / name, weights, {"title": "random weights of the SVDQuant demo"})
    return models / "diffusion_models" / MODEL


def run(client: Client, source: Path, say: Callable[[str], None]) -> tuple[PixartResult, list[Check]]:
    """Draw in BF16, quantize to int4 in the graph, draw, load the file again, draw."""
    bf16 = client.run("pixart_bf16")
    floor = relative_error(client.run("pixart_bf16", {"sampler.seed": OTHER_SEED}).latent, bf16.latent)
    say(f"BF16 in {bf16.seconds:.1f} s")
    quantized = client.run("pixart_quantize")
    path = Path(quantized.texts["path"])
    error = relative_error(quantized.latent, bf16.latent)
    say(f"quantized to int4, saved and drew in {quantized.seconds:.1f} s: latent error {error:.1%}")
    reloaded = client.run("pixart_svdquant", {"model.model_name": path.name})
    checks = [
        Check(
            "PixArt int4: quantized in the graph = saved and loaded again",
            is_identical(quantized.latent, quantized.image, reloaded.latent, reloaded.image),
            f"latent difference {relative_error(reloaded.latent, quantized.latent):.1e}",
        ),
        Check(
            "PixArt int4 is nearer to BF16 than BF16 with another seed",
            error < floor,
            f"latent error {error:.1%}, other seed {floor:.1%}",
        ),
    ]
    return PixartResult(source, path, error, floor, bf16, reloaded, quantized.texts["report"]), checks


def random_pixart() -> dict[str, Tensor]:
    """PixArt-Sigma with one block, BF16, in the host's key names; std 1/sqrt(fan in), as an untrained layer has."""
    linears = {
        "t_embedder.mlp.0": (HIDDEN, 256),
        "t_embedder.mlp.2": (HIDDEN, HIDDEN),
        "t_block.1": (6 * HIDDEN, HIDDEN),
        "y_embedder.y_proj.fc1": (HIDDEN, CAPTION),
        "y_embedder.y_proj.fc2": (HIDDEN, HIDDEN),
        "blocks.0.attn.qkv": (3 * HIDDEN, HIDDEN),
        "blocks.0.attn.proj": (HIDDEN, HIDDEN),
        "blocks.0.cross_attn.q_linear": (HIDDEN, HIDDEN),
        "blocks.0.cross_attn.kv_linear": (2 * HIDDEN, HIDDEN),
        "blocks.0.cross_attn.proj": (HIDDEN, HIDDEN),
        "blocks.0.mlp.fc1": (4 * HIDDEN, HIDDEN),
        "blocks.0.mlp.fc2": (HIDDEN, 4 * HIDDEN),
        "x_embedder.proj": (HIDDEN, 4, 2, 2),
        "final_layer.linear": (32, HIDDEN),
    }
    generator = torch.Generator().manual_seed(_SEED)
    weights = {}
    for name, shape in linears.items():
        weights |= _layer(name, shape, generator)
    weights["final_layer.linear.weight"] *= _OUTPUT_GAIN
    for name, rows in {"blocks.0.scale_shift_table": 6, "final_layer.scale_shift_table": 2}.items():
        weights[name] = torch.randn(rows, HIDDEN, generator=generator) * HIDDEN**-0.5
    weights["y_embedder.y_embedding"] = torch.randn(300, CAPTION, generator=generator) * CAPTION**-0.5
    return {name: weight.bfloat16() for name, weight in weights.items()}


def random_autoencoder(*, encoder: bool) -> dict[str, Tensor]:
    """One half of the host's tiny SDXL autoencoder, in its own numbering of layers."""
    if encoder:
        plain, strided, blocks = {0: (WIDTH, 3), 14: (LATENT, WIDTH)}, (2, 6, 10), (1, 3, 4, 5, 7, 8, 9, 11, 12, 13)
    else:
        plain, strided, blocks = {1: (WIDTH, LATENT), 19: (3, WIDTH)}, (7, 12, 17), (3, 4, 5, 8, 9, 10, 13, 14, 15, 18)
    generator = torch.Generator().manual_seed(_SEED + 1 + encoder)
    weights = {}
    for index, (rows, columns) in plain.items():
        weights |= _layer(str(index), (rows, columns, 3, 3), generator)
    for index in strided:
        weights |= _layer(str(index), (WIDTH, WIDTH, 3, 3), generator)
        del weights[f"{index}.bias"]  # where the size changes there is none
    for index in blocks:
        for convolution in (0, 2, 4):
            weights |= _layer(f"{index}.conv.{convolution}", (WIDTH, WIDTH, 3, 3), generator)
    return weights


def _layer(name: str, shape: tuple[int, ...], generator: torch.Generator) -> dict[str, Tensor]:
    fan_in = torch.Size(shape[1:]).numel()
    return {
        f"{name}.weight": torch.randn(shape, generator=generator) * fan_in**-0.5,
        f"{name}.bias": torch.randn(shape[0], generator=generator) * _BIAS_STD,
    }
