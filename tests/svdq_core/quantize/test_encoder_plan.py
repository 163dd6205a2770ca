"""Text encoders in 4 bits: which tensors, by names and shapes alone; a file that is read back."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from svdquant_pack.svdq_core.apply_layer import dense_weight
from svdquant_pack.svdq_core.checkpoint import Checkpoint
from svdquant_pack.svdq_core.checkpoint.encoder_read import holds_encoder_layers, read_encoder
from svdquant_pack.svdq_core.errors import CheckpointError
from svdquant_pack.svdq_core.quantize.encoder_plan import plan_text_encoder, text_encoder_job
from svdquant_pack.svdq_core.quantize.to_file import quantize_to_file


def write(path: Path, prefix: str = "model.", **more: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).mul(shape[-1] ** -0.5).bfloat16()

    tensors = {f"{prefix}embed_tokens.weight": draw(50, 128), f"{prefix}norm.weight": draw(128)}
    for index in range(2):
        layer = f"{prefix}layers.{index}"
        tensors |= {f"{layer}.self_attn.{n}_proj.weight": draw(128, 128) for n in "qkvo"}
        tensors |= {f"{layer}.self_attn.q_proj.bias": draw(128), f"{layer}.input_layernorm.weight": draw(128)}
        tensors |= {f"{layer}.mlp.up_proj.weight": draw(256, 128), f"{layer}.mlp.odd.weight": draw(250, 100)}
    tensors |= more
    save_file(tensors, path)
    return tensors


def test_linears_of_repeated_layers(tmp_path):
    write(tmp_path / "te.safetensors", **{"model.visual.blocks.0.qkv.weight": torch.zeros(128, 128).bfloat16()})
    plan = plan_text_encoder(Checkpoint(tmp_path / "te.safetensors"))
    assert len(plan.names) == 10 and all(layer.is_modulation for layer in plan.quantized)
    assert "model.layers.0.self_attn.q_proj" in plan.names and "model.embed_tokens" not in plan
    assert "no multiples" in plan["model.layers.0.mlp.odd"].why
    assert "no text" in plan["model.visual.blocks.0.qkv"].why


@pytest.mark.parametrize("group", [64, 128])
@pytest.mark.parametrize("prefix", ["model.", ""])
def test_a_file_and_back(prefix, group, tmp_path):
    tokenizer = torch.arange(200, dtype=torch.uint8)
    source, target = tmp_path / "te.safetensors", tmp_path / "awq.safetensors"
    tensors = write(source, prefix, **{f"{prefix}spiece_model": tokenizer})
    outcome = quantize_to_file(text_encoder_job(source, target, torch.device("cpu"), group=group))
    most = 0.09 if group == 64 else 0.1
    assert outcome is not None and all(report.relative_error < most for report in outcome.reports)
    assert target.stat().st_size < 0.6 * source.stat().st_size
    checkpoint = Checkpoint(target)
    assert holds_encoder_layers(checkpoint) and not holds_encoder_layers(Checkpoint(source))
    model = read_encoder(checkpoint)
    assert len(model.layers) == 10 and torch.equal(model.plain[f"{prefix}spiece_model"], tokenizer)
    for name, layer in model.layers.items():
        weight = tensors[f"{name}.weight"].float()
        assert (dense_weight(layer) - weight).norm() < most * weight.norm(), name
    bias = model.layers[f"{prefix}layers.0.self_attn.q_proj"].bias
    assert bias is not None and torch.equal(bias, tensors[f"{prefix}layers.0.self_attn.q_proj.bias"])
    assert (
        checkpoint.metadata["svdquant_source"] == "te.safetensors"
        and f"W4A16, groups of {group}" in checkpoint.metadata["svdquant_method"]
    )
    with pytest.raises(CheckpointError, match=r"awq\.safetensors is a 4-bit text encoder already"):
        plan_text_encoder(checkpoint)


def test_what_cannot_be_quantized(tmp_path):
    reduced = torch.zeros(128, 128).to(torch.float8_e4m3fn)
    write(tmp_path / "fp8.safetensors", **{"model.layers.0.self_attn.q_proj.weight": reduced})
    with pytest.raises(CheckpointError, match="F8_E4M3: the text encoder is in a reduced precision"):
        plan_text_encoder(Checkpoint(tmp_path / "fp8.safetensors"))
    write(
        tmp_path / "moe.safetensors", **{"model.layers.0.mlp.experts.up.weight": torch.zeros(16, 256, 256).bfloat16()}
    )
    with pytest.raises(CheckpointError, match="experts in stacks of three dimensions"):
        plan_text_encoder(Checkpoint(tmp_path / "moe.safetensors"))
    save_file({"a.weight": torch.zeros(128, 128)}, tmp_path / "one.safetensors")
    with pytest.raises(CheckpointError, match="no repeated layers"):
        plan_text_encoder(Checkpoint(tmp_path / "one.safetensors"))
