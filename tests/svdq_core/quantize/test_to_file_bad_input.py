"""A model into a file: what the format cannot hold stays in 16 bits, what is broken is said before the work."""

import pytest
import torch
from dense_compare import dense_model
from safetensors.torch import load_file
from tiny_files import DATA

from svdquant_pack.svdq_core.errors import CheckpointError, SVDQuantError
from svdquant_pack.svdq_core.models import FLUX, PIXART
from svdquant_pack.svdq_core.quantize import QuantSpec, whole_model
from svdquant_pack.svdq_core.quantize.journal import journal_folder
from svdquant_pack.svdq_core.quantize.layout_plan import plan_weights
from svdquant_pack.svdq_core.quantize.overrides import Overrides
from svdquant_pack.svdq_core.quantize.to_file import QuantizeJob, quantize_to_file

SPEC = QuantSpec(score_tokens=32, rank=16)


@pytest.fixture(scope="module")
def dense():
    """The dense weights of the tiny FLUX, under the host's names."""
    return dense_model(DATA / "flux_tiny_int4_r32.safetensors")


def job(architecture, weights, target, **changes) -> QuantizeJob:
    return QuantizeJob(
        architecture,
        plan_weights(architecture, weights),
        weights,
        list(weights),
        SPEC,
        torch.device("cpu"),
        target,
        "fingerprint",
        **changes,
    )


def test_sizes_that_the_layout_cannot_hold_stay_in_16_bits(dense, tmp_path):
    odd = dict(dense)  # an MLP of 4 * 256 + 64: no multiple of 128
    g = torch.Generator().manual_seed(0)
    for name, shape in {"0.weight": (1088, 256), "0.bias": (1088,), "2.weight": (256, 1088)}.items():
        odd[f"double_blocks.0.img_mlp.{name}"] = torch.randn(shape, generator=g) / 16
    outcome = quantize_to_file(job(FLUX, odd, tmp_path / "odd.safetensors"))
    assert len(outcome.kept) == 2
    assert "img_mlp.0: 1088 outputs and 256 inputs, expected multiples of 128" in outcome.kept[0]
    stored = load_file(tmp_path / "odd.safetensors")["transformer_blocks.0.mlp_fc1.weight"]
    assert torch.equal(stored, odd["double_blocks.0.img_mlp.0.weight"].bfloat16())


def test_a_hidden_size_that_the_format_cannot_hold(tmp_path):
    width = 320  # 2.5 tiles
    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=g) / shape[-1] ** 0.5

    weights = {"x_embedder.proj.weight": draw(width, 4, 2, 2), "x_embedder.proj.bias": draw(width)}
    for module, (rows, columns) in {
        "y_embedder.y_proj.fc1": (width, 64),
        "y_embedder.y_proj.fc2": (width, width),
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "t_block.1": (6 * width, width),
        "blocks.0.attn.qkv": (3 * width, width),
        "blocks.0.attn.proj": (width, width),
        "blocks.0.cross_attn.q_linear": (width, width),
        "blocks.0.cross_attn.kv_linear": (2 * width, width),
        "blocks.0.cross_attn.proj": (width, width),
        "blocks.0.mlp.fc1": (4 * width, width),
        "blocks.0.mlp.fc2": (width, 4 * width),
    }.items():
        weights[f"{module}.weight"], weights[f"{module}.bias"] = draw(rows, columns), draw(rows)
    weights["blocks.0.scale_shift_table"] = draw(6, width)
    target = tmp_path / "narrow.safetensors"
    with pytest.raises(SVDQuantError, match=r"no layer is left to be quantized.*960 outputs and 320 inputs, expected"):
        quantize_to_file(job(PIXART, weights, target))
    assert not target.exists()


def test_what_stays_in_16_bits_is_checked_before_the_work(dense, tmp_path, monkeypatch):
    broken = dense | {"final_layer.linear.weight": dense["final_layer.linear.weight"] * float("nan")}
    monkeypatch.setattr(whole_model, "quantize_layer", lambda *args, **more: pytest.fail("the work had begun"))
    with pytest.raises(CheckpointError, match=r"final_layer\.linear\.weight"):
        quantize_to_file(job(FLUX, broken, tmp_path / "a.safetensors"))
    assert list(tmp_path.iterdir()) == []


def test_a_crash_while_the_file_is_put_together_changes_no_choice(dense, tmp_path, monkeypatch):
    """The worst layers are chosen from the journal, which stays as it was."""
    work = job(FLUX, dense, tmp_path / "a.safetensors", overrides=Overrides(worst=2))
    from svdquant_pack.svdq_core.quantize import to_file as run

    with monkeypatch.context() as patch:
        patch.setattr(run, "write_stream", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            quantize_to_file(work)
    assert journal_folder(work.target).exists()
    resumed = quantize_to_file(work)
    assert resumed.resumed == 13 and len(resumed.kept) == 2
    content = work.target.read_bytes()
    work.target.unlink()
    assert quantize_to_file(work).kept == resumed.kept and work.target.read_bytes() == content
