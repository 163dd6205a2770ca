"""Files as NVIDIA ModelOpt exports NVFP4_SVD: modules of diffusers, each with the formula's own dense weight."""

import numpy as np
import torch
from family_files import W
from family_modules import MODULES, ModuleFile, empty_file
from nunchaku_packer import Packed
from torch import Tensor

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
RANK = 8  # a rank that is no multiple of 16


def quantized(rows: int, columns: int, branch: bool, draw: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors of a module, and the dense weight that the exporter's formula gives."""
    codes = torch.randint(0, 16, (rows, columns), generator=draw)
    scales = (0.5 + torch.rand(rows, columns // 16, generator=draw)).to(torch.float8_e4m3fn)
    whole = torch.tensor(0.01)
    before = (0.5 + torch.rand(columns, generator=draw)).bfloat16()
    weight = E2M1[codes] * scales.float().repeat_interleave(16, dim=1) * whole
    tensors = {
        "weight": (codes[:, 0::2] | codes[:, 1::2] << 4).to(torch.uint8),
        "weight_scale": scales,
        "weight_scale_2": whole,
        "input_scale": torch.tensor(1.0),
        "bias": torch.randn(rows, generator=draw).bfloat16(),
    }
    if branch:
        down = (0.1 * torch.randn(RANK, columns, generator=draw)).bfloat16()
        up = (0.1 * torch.randn(rows, RANK, generator=draw)).bfloat16()
        tensors |= {"pre_quant_scale": before, "svdquant_lora_a": down, "svdquant_lora_b": up}
        weight = (weight + up.float() @ down.float()) * before.float()
    return tensors, weight


def modelopt(family: str) -> ModuleFile:
    """Every second Linear with a branch, the others plain NVFP4."""
    file, draw = empty_file(family, "nvfp4"), torch.Generator().manual_seed(9)
    for number, module in enumerate(MODULES[family]):
        found = []
        for name, rows in zip(module.modules, module.rows, strict=True):
            tensors, weight = quantized(rows * W, module.columns * W, number % 2 == 0, draw)
            bias = tensors.pop("bias")
            if module.bias:
                tensors["bias"] = bias
            file.tensors |= {f"{name}.{end}": tensor for end, tensor in tensors.items()}
            found.append(Packed({}, weight.double().numpy(), bias.double().numpy() if module.bias else None))
        file.put(module, found)
    file.rest()
    return file


def relative_error(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))
