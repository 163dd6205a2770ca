"""LoRAs for the tiny FLUX of tests/data, made here: one LoRA in every spelling, and every kind of adapter."""

from collections.abc import Callable

import torch
from torch import Tensor

HIDDEN, MLP = 256, 1024

# diffusers layer -> (outputs, inputs); the last one is not quantized
SPLIT_LAYERS = {
    "transformer_blocks.0.attn.to_q": (HIDDEN, HIDDEN),
    "transformer_blocks.0.attn.to_v": (HIDDEN, HIDDEN),
    "transformer_blocks.0.attn.add_k_proj": (HIDDEN, HIDDEN),
    "transformer_blocks.0.ff.net.0.proj": (MLP, HIDDEN),
    "transformer_blocks.0.ff.net.2": (HIDDEN, MLP),
    "transformer_blocks.0.norm1.linear": (6 * HIDDEN, HIDDEN),
    "single_transformer_blocks.0.attn.to_k": (HIDDEN, HIDDEN),
    "single_transformer_blocks.0.proj_mlp": (MLP, HIDDEN),
    "single_transformer_blocks.0.proj_out": (HIDDEN, HIDDEN + MLP),
    "proj_out": (64, HIDDEN),
}

# layer as the host calls it -> (outputs, inputs); the last two are not quantized
FUSED_LAYERS = {
    "double_blocks.0.img_attn.qkv": (3 * HIDDEN, HIDDEN),
    "double_blocks.0.txt_attn.proj": (HIDDEN, HIDDEN),
    "double_blocks.0.txt_mlp.0": (MLP, HIDDEN),
    "double_blocks.0.img_mlp.2": (HIDDEN, MLP),
    "double_blocks.0.txt_mod.lin": (6 * HIDDEN, HIDDEN),
    "single_blocks.0.linear1": (3 * HIDDEN + MLP, HIDDEN),
    "single_blocks.0.linear2": (HIDDEN, HIDDEN + MLP),
    "single_blocks.0.modulation.lin": (3 * HIDDEN, HIDDEN),
    "txt_in": (HIDDEN, 128),
    "final_layer.linear": (64, HIDDEN),
}

RANK = 4


def _factors(layers: dict, seed: int, scale: float = 0.2) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> (A (r, K), B (N, r))."""
    g = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(RANK, inputs, generator=g) * scale, torch.randn(outputs, RANK, generator=g) * scale)
        for name, (outputs, inputs) in layers.items()
    }


def _spell(layers: dict, seed: int, name: Callable[[str], str], *, down: str, up: str, alpha: bool = True) -> dict:
    """A LoRA file: name(layer) + down and + up are the keys of the factors."""
    lora = {}
    for layer, (a, b) in _factors(layers, seed).items():
        lora[name(layer) + down], lora[name(layer) + up] = a, b
        if alpha:
            lora[name(layer) + ".alpha"] = torch.tensor(RANK / 2)
    return lora


def diffusers_lora(seed: int, alpha: bool = True) -> dict[str, Tensor]:
    """Split q, k, v, modulation, linear1 and linear2, an unquantized layer; alpha is half the rank."""
    return _spell(
        SPLIT_LAYERS, seed, lambda n: f"transformer.{n}", down=".lora_A.weight", up=".lora_B.weight", alpha=alpha
    )


def host_lora(seed: int, alpha: bool = True) -> dict[str, Tensor]:
    """The same kind of LoRA on the host's own, fused layers."""
    return _spell(
        FUSED_LAYERS, seed, lambda n: f"diffusion_model.{n}", down=".lora_A.weight", up=".lora_B.weight", alpha=alpha
    )


def _under(name: str) -> str:
    return name.replace(".", "_")


# spelling -> (file, the same LoRA as the host's own loader is sure to read it), both of a seed
SPELLINGS = {
    "diffusers": (diffusers_lora, diffusers_lora),
    "diffusers without alpha": (lambda s: diffusers_lora(s, False), lambda s: diffusers_lora(s, False)),
    "BFL": (lambda s: _spell(FUSED_LAYERS, s, str, down=".lora_A.weight", up=".lora_B.weight"), host_lora),
    "ComfyUI": (host_lora, host_lora),
    "PEFT": (
        lambda s: _spell(
            SPLIT_LAYERS, s, lambda n: f"base_model.model.{n}", down=".lora_A.weight", up=".lora_B.weight"
        ),
        diffusers_lora,
    ),
    "PEFT on a pipeline": (
        lambda s: _spell(
            SPLIT_LAYERS, s, lambda n: f"base_model.model.transformer.{n}", down=".lora_A.weight", up=".lora_B.weight"
        ),
        diffusers_lora,
    ),
    "PEFT with the adapter's name": (
        lambda s: _spell(
            SPLIT_LAYERS,
            s,
            lambda n: f"base_model.model.{n}",
            down=".lora_A.my_style.weight",
            up=".lora_B.my_style.weight",
        ),
        diffusers_lora,
    ),
    "kohya": (
        lambda s: _spell(
            FUSED_LAYERS, s, lambda n: "lora_unet_" + _under(n), down=".lora_down.weight", up=".lora_up.weight"
        ),
        host_lora,
    ),
    "kohya with diffusers' layers": (
        lambda s: _spell(
            SPLIT_LAYERS, s, lambda n: "lora_unet_" + _under(n), down=".lora_down.weight", up=".lora_up.weight"
        ),
        diffusers_lora,
    ),
    "OneTrainer": (
        lambda s: _spell(
            SPLIT_LAYERS, s, lambda n: "lora_transformer_" + _under(n), down=".lora_down.weight", up=".lora_up.weight"
        ),
        diffusers_lora,
    ),
    "SimpleTuner": (
        lambda s: _spell(
            SPLIT_LAYERS, s, lambda n: "lycoris_" + _under(n), down=".lora_down.weight", up=".lora_up.weight"
        ),
        diffusers_lora,
    ),
    "old diffusers": (
        lambda s: _spell(SPLIT_LAYERS, s, lambda n: f"transformer.{n}", down=".lora.down.weight", up=".lora.up.weight"),
        diffusers_lora,
    ),
    "mixed prefixes": (lambda s: _mixed(s), diffusers_lora),
}


def _mixed(seed: int) -> dict[str, Tensor]:
    prefixes = ("", "transformer.", "base_model.model.", "base_model.model.transformer.", "unet.")
    lora = diffusers_lora(seed)
    layers = list(SPLIT_LAYERS)
    mixed = {}
    for key, tensor in lora.items():
        bare = key.removeprefix("transformer.")
        index = next(i for i, layer in enumerate(layers) if bare.startswith(layer + "."))
        mixed[prefixes[index % len(prefixes)] + bare] = tensor
    return mixed


# XLabs layer -> the host's
XLABS_LAYERS = {
    "double_blocks.0.processor.qkv_lora1": "double_blocks.0.img_attn.qkv",
    "double_blocks.0.processor.qkv_lora2": "double_blocks.0.txt_attn.qkv",
    "double_blocks.0.processor.proj_lora1": "double_blocks.0.img_attn.proj",
    "double_blocks.0.processor.proj_lora2": "double_blocks.0.txt_attn.proj",
}


def xlabs_lora(seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A LoRA of XLabs on the double blocks, and the same as the host reads it."""
    sizes = {name: (3 * HIDDEN if "qkv" in name else HIDDEN, HIDDEN) for name in XLABS_LAYERS}
    file, same = {}, {}
    for name, (a, b) in _factors(sizes, seed).items():
        file[f"{name}.down.weight"], file[f"{name}.up.weight"] = a, b
        host = f"diffusion_model.{XLABS_LAYERS[name]}"
        same[f"{host}.lora_A.weight"], same[f"{host}.lora_B.weight"] = a, b
    return file, same


def control_lora(seed: int) -> dict[str, Tensor]:
    """As FLUX tools publish them: twice the image channels, biases, and new norms; the names of the first authors."""
    layers = {"img_in": (HIDDEN, 128)} | {n: s for n, s in FUSED_LAYERS.items() if n != "txt_in"}
    lora = _spell(layers, seed, str, down=".lora_A.weight", up=".lora_B.weight", alpha=False)
    g = torch.Generator().manual_seed(seed + 1)
    for name, (outputs, _) in layers.items():
        lora[f"{name}.lora_B.bias"] = torch.randn(outputs, generator=g) * 0.1
    for norm in ("img_attn.norm.query_norm", "img_attn.norm.key_norm", "txt_attn.norm.key_norm"):
        lora[f"double_blocks.0.{norm}.scale"] = torch.rand(128, generator=g) + 0.5
    lora["single_blocks.0.norm.key_norm.scale"] = torch.rand(128, generator=g) + 0.5
    return lora


def _randn(seed: int, *shapes: tuple, scale: float = 0.3) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g) * scale for shape in shapes]


def lokr(seed: int, name: str, outputs: int, inputs: int) -> dict[str, Tensor]:
    """A LoKr with one whole matrix and one of rank 4."""
    left, right_a, right_b = _randn(seed, (8, 8), (outputs // 8, RANK), (RANK, inputs // 8))
    found = {"lokr_w1": left, "lokr_w2_a": right_a, "lokr_w2_b": right_b, "alpha": torch.tensor(2.0)}
    return {f"{name}.{key}": tensor for key, tensor in found.items()}


def loha(seed: int, name: str, outputs: int, inputs: int, rank: int = RANK) -> dict[str, Tensor]:
    first = _randn(seed, (outputs, rank), (rank, inputs), (outputs, rank), (rank, inputs))
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    return {f"{name}.{key}": t for key, t in zip(names, first, strict=True)} | {f"{name}.alpha": torch.tensor(2.0)}


def glora(seed: int, name: str, outputs: int, inputs: int) -> dict[str, Tensor]:
    a1, a2, b1, b2 = _randn(seed, (inputs, RANK), (RANK, inputs), (outputs, RANK), (RANK, inputs), scale=0.2)
    return {f"{name}.{key}.weight": t for key, t in (("a1", a1), ("a2", a2), ("b1", b1), ("b2", b2))}


def oft(seed: int, name: str, outputs: int, inputs: int) -> dict[str, Tensor]:
    (blocks,) = _randn(seed, (outputs // 16, 16, 16), scale=0.1)
    return {f"{name}.oft_blocks": blocks, f"{name}.alpha": torch.tensor(100.0)}


def boft(seed: int, name: str, outputs: int, inputs: int) -> dict[str, Tensor]:
    (blocks,) = _randn(seed, (3, outputs // 16, 16, 16), scale=0.1)
    return {f"{name}.oft_blocks": blocks, f"{name}.alpha": torch.tensor(100.0)}


def dora(seed: int, name: str, outputs: int, inputs: int) -> dict[str, Tensor]:
    a, b = _randn(seed, (RANK, inputs), (outputs, RANK), scale=0.2)
    scale = torch.rand(outputs, 1, generator=torch.Generator().manual_seed(seed)) * 8 + 12
    return {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b, f"{name}.dora_scale": scale}


def dora_by_inputs(seed: int, name: str, outputs: int, inputs: int) -> dict[str, Tensor]:
    scale = torch.rand(1, inputs, generator=torch.Generator().manual_seed(seed)) * 8 + 12
    return dora(seed, name, outputs, inputs) | {f"{name}.dora_scale": scale}


def difference(seed: int, name: str, outputs: int, inputs: int) -> dict[str, Tensor]:
    weight, bias = _randn(seed, (outputs, inputs), (outputs,), scale=0.03)
    return {f"{name}.diff": weight, f"{name}.diff_b": bias}


def new_weight(seed: int, name: str, outputs: int, inputs: int) -> dict[str, Tensor]:
    return {f"{name}.set_weight": _randn(seed, (outputs, inputs), scale=inputs**-0.5)[0]}


ADAPTERS = {
    "LoKr": lokr,
    "LoHa": loha,
    "LoHa of rank 20": lambda *a: loha(*a, rank=20),  # a low-rank difference of rank 400: too many columns for factors
    "GLoRA": glora,
    "OFT": oft,
    "BOFT": boft,
    "DoRA": dora,
    "DoRA by inputs": dora_by_inputs,
    "difference": difference,
    "new weight": new_weight,
}


def adapter_file(kind: str, seed: int = 3) -> dict[str, Tensor]:
    """An adapter of that kind on 4-bit, modulation, composite and unquantized layers."""
    lora = {}
    for i, (name, (outputs, inputs)) in enumerate(FUSED_LAYERS.items()):
        lora |= ADAPTERS[kind](seed + i, f"diffusion_model.{name}", outputs, inputs)
    return lora
