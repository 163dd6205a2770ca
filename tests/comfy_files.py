"""comfy-native files as their two producers write them, with random values, and the values that they were made of."""

import json
from pathlib import Path

import torch
from checkpoint_files import write_tensors
from torch import Tensor

H = 128  # width of the model
TILE_PACKED = "kitchen_tile_packed_w4a4"
SPELLINGS = {"comfy-quants": "", "comfy-kitchen": "weight_"}  # before smooth_factor, proj_down, proj_up
ZEROS = {"comfy-quants": "weight_zero", "comfy-kitchen": "weight_zeros"}

FLUX_LAYERS = {  # name -> (outputs, inputs), the modulations aside
    **{
        f"double_blocks.0.{s}_{name}": shape
        for s in ("img", "txt")
        for name, shape in {
            "attn.qkv": (3 * H, H),
            "attn.proj": (H, H),
            "mlp.0": (4 * H, H),
            "mlp.2": (H, 4 * H),
        }.items()
    },
    "single_blocks.0.linear1": (7 * H, H),
    "single_blocks.0.linear2": (H, 5 * H),
}
FLUX_MODULATIONS = {
    "double_blocks.0.img_mod.lin": (6 * H, H),
    "double_blocks.0.txt_mod.lin": (6 * H, H),
    "single_blocks.0.modulation.lin": (3 * H, H),
}
FLUX_MODULES = {
    "img_in": (H, 64),
    "txt_in": (H, 128),
    "time_in.in_layer": (H, 256),
    "time_in.out_layer": (H, H),
    "vector_in.in_layer": (H, 64),
    "vector_in.out_layer": (H, H),
    "final_layer.adaLN_modulation.1": (2 * H, H),
    "final_layer.linear": (64, H),
}
FLUX_NORMS = [f"double_blocks.0.{s}_attn.norm.{n}_norm" for s in ("img", "txt") for n in ("query", "key")]
FLUX_NORMS += [f"single_blocks.0.norm.{n}_norm" for n in ("query", "key")]


def pixart_layers(width: int) -> dict[str, tuple[int, ...]]:
    """Name -> (outputs, inputs) of the quantized Linears of one block."""
    square, tall, wide = (width, width), (4 * width, width), (width, 4 * width)
    names = ("attn.proj", "cross_attn.q_linear", "cross_attn.proj")
    shapes = {"attn.qkv": (3 * width, width), **dict.fromkeys(names, square), "mlp.fc1": tall, "mlp.fc2": wide}
    return {f"blocks.0.{name}": shape for name, shape in shapes.items()}


def pixart_modules(width: int, text: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the weight of every other module."""
    return {
        "blocks.0.cross_attn.kv_linear": (2 * width, width),
        "x_embedder.proj": (width, 4, 2, 2),
        "t_block.1": (6 * width, width),
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "y_embedder.y_proj.fc1": (width, text),
        "y_embedder.y_proj.fc2": (width, width),
        "final_layer.linear": (32, width),
    }


UNSIGNED = ("_mlp.2", ".fc2")  # ends of layers behind a GELU


class ComfyFile:
    """A file to be.

    Args:
        family: "flux", "pixart", or "empty" for a file that layers are added to.
        spelling: a key of SPELLINGS.
        tiled: tile-packed weights.
        basis: "raw", "post_smoothing" or None for not saying.
        unsigned: layers behind a GELU have unsigned activations.
        rank: of every low-rank branch.
        width, text: sizes of a PixArt; its own are 1152 and 4096.
    """

    def __init__(
        self,
        family="flux",
        *,
        spelling="comfy-quants",
        tiled=False,
        basis="raw",
        unsigned=True,
        rank=16,
        width=H,
        text=64,
    ):
        self.draw = torch.Generator().manual_seed(11)
        self.spelling, self.tiled, self.basis, self.rank = spelling, tiled, basis, rank
        self.tensors: dict[str, Tensor] = {}
        self.configs: dict[str, dict] = {}
        self.truth: dict[str, dict[str, Tensor]] = {}
        if family == "empty":
            return
        for name, shape in (FLUX_LAYERS if family == "flux" else pixart_layers(width)).items():
            self.add_svdquant(name, *shape, unsigned and name.endswith(UNSIGNED))
        for name, shape in (FLUX_MODULATIONS if family == "flux" else {}).items():
            self.add_awq(name, *shape)
        for name, shape in (FLUX_MODULES if family == "flux" else pixart_modules(width, text)).items():
            self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"] = self.random(*shape), self.random(shape[0])
        if family == "flux":
            self.tensors |= {f"{name}.scale": self.random(128) for name in FLUX_NORMS}  # as the original model has them
        else:
            self.tensors |= {
                "blocks.0.scale_shift_table": self.random(6, width),
                "final_layer.scale_shift_table": self.random(2, width),
            }

    def random(self, *shape: int) -> Tensor:
        return (0.1 * torch.randn(*shape, generator=self.draw)).bfloat16()

    def codes(self, rows: int, columns: int, low: int) -> Tensor:
        return torch.randint(low, low + 16, (rows, columns), generator=self.draw)

    def add_svdquant(self, name: str, rows: int, columns: int, unsigned: bool) -> None:
        codes, scales = self.codes(rows, columns, -8), self.random(columns // 64, rows)
        smooth = (1 + torch.rand(columns, generator=self.draw)).bfloat16()
        down, up, bias = self.random(columns, self.rank), self.random(rows, self.rank), self.random(rows)
        self.truth[name] = {"q": codes, "scales": scales, "smooth": smooth, "down": down, "up": up, "bias": bias}
        prefix = SPELLINGS[self.spelling]
        stored = {"weight": pack(codes), "weight_scale": scales, f"{prefix}proj_up": up}
        if self.tiled:
            stored = {key: tile(key, tensor) for key, tensor in stored.items()}
        stored |= {f"{prefix}smooth_factor": smooth, f"{prefix}proj_down": down, "bias": bias}
        self.tensors |= {f"{name}.{key}": tensor for key, tensor in stored.items()}
        config = {"format": "svdquant_w4a4"} | ({"layout": TILE_PACKED} if self.tiled else {})
        if self.basis:
            config |= {"lowrank_branch_input_basis": self.basis, "proj_down_smooth_folded": self.basis == "raw"}
        self.configs[name] = config | ({"act_unsigned": True} if unsigned else {})

    def add_awq(self, name: str, rows: int, columns: int) -> None:
        codes, scales, zeros = (
            self.codes(rows, columns, 0),
            self.random(columns // 64, rows),
            self.random(columns // 64, rows),
        )
        bias = self.random(rows)
        self.truth[name] = {"q": codes, "scales": scales, "zeros": zeros, "bias": bias}
        stored = {"weight": pack(codes), "weight_scale": scales, ZEROS[self.spelling]: zeros, "bias": bias}
        self.tensors |= {f"{name}.{key}": tensor for key, tensor in stored.items()}
        self.configs[name] = {"format": "awq_w4a16", "group_size": 64}

    def write(self, path: Path, in_metadata: bool = False, prefix: str = "") -> Path:
        """Write the file; the configs beside each layer, or all together in the metadata."""
        tensors, metadata = dict(self.tensors), {}
        if in_metadata:
            listed = {prefix + name: config for name, config in self.configs.items()}
            metadata["_quantization_metadata"] = json.dumps({"format_version": "1.0", "layers": listed})
        else:
            for name, config in self.configs.items():
                tensors[f"{name}.comfy_quant"] = json_tensor(config)
        return write_tensors(path, {prefix + name: tensor for name, tensor in tensors.items()}, metadata or None)


def json_tensor(config: dict) -> Tensor:
    return torch.tensor(list(json.dumps(config).encode()), dtype=torch.uint8)


def pack(codes: Tensor) -> Tensor:
    """Byte j of a row: code 2j in the low nibble, code 2j + 1 in the high one."""
    return ((codes[:, 0::2] & 15) | ((codes[:, 1::2] & 15) << 4)).to(torch.uint8).view(torch.int8)


def tile(key: str, tensor: Tensor) -> Tensor:
    """Tiles of 128 rows, value by value as the format's documentation has them."""
    if key == "weight_scale":  # (K/64, N) -> (N/128, K/64, 128)
        return torch.stack([tensor[:, start : start + 128] for start in range(0, tensor.shape[1], 128)])
    if key.endswith("proj_up"):  # (N, R) -> (N/128, R, 128)
        return torch.stack([tensor[start : start + 128].T for start in range(0, tensor.shape[0], 128)])
    rows, half = tensor.shape  # weight: (N/128, K/64, 32, 128), four rows of 32 bytes beside each other
    tiles = torch.empty(rows // 128, half // 32, 32, 128, dtype=torch.int8)
    for row in range(rows):
        quad, inner = (row % 128) // 4, row % 4
        for group in range(half // 32):
            piece = tensor[row, 32 * group : 32 * group + 32]
            tiles[row // 128, group, quad, 32 * inner : 32 * inner + 32] = piece
    return tiles
