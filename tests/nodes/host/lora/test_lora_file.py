"""LoRA files applied: what the host would lose is applied, what it leaves out is said, what would spoil is refused."""

import re

import pytest
import torch
from lora_files import HIDDEN, MLP, SPLIT_LAYERS, diffusers_lora, host_lora
from safetensors.torch import save_file
from sampling import relative_error, rounding, sample_flux

from svdquant_pack.nodes.host.lora.lora_file import apply_lora_file
from svdquant_pack.svdq_core.errors import LoraError

ORDER = rounding(5e-6)


@pytest.fixture
def apply(tmp_path):
    def run(model, lora: dict, strength: float = 0.8):
        path = tmp_path / "some.safetensors"
        save_file({key: t.contiguous() for key, t in lora.items()}, path)
        patched, report = apply_lora_file(model, str(path), strength)
        return patched, report.text()

    return run


def rows(total: int, *pieces: tuple[int, torch.Tensor]) -> torch.Tensor:
    whole = torch.zeros(total)
    for start, piece in pieces:
        whole[start : start + len(piece)] = piece
    return whole


@pytest.mark.parametrize("spelling", [".lora_B.bias", ".diff_b"])
def test_biases_of_parts_of_a_layer(model, dense, add, apply, spelling):
    """q, k, v and proj_mlp are rows of one layer here; the host drops what the file has for their biases."""
    g = torch.Generator().manual_seed(4)
    b = {name: torch.randn(outputs, generator=g) * 0.3 for name, (outputs, _) in SPLIT_LAYERS.items()}
    lora = diffusers_lora(5, alpha=False) | {f"transformer.{name}{spelling}": bias for name, bias in b.items()}
    single, q = "single_transformer_blocks.0", HIDDEN
    whole = {
        "double_blocks.0.img_attn.qkv": rows(
            3 * q, (0, b["transformer_blocks.0.attn.to_q"]), (2 * q, b["transformer_blocks.0.attn.to_v"])
        ),
        "double_blocks.0.txt_attn.qkv": rows(3 * q, (q, b["transformer_blocks.0.attn.add_k_proj"])),
        "double_blocks.0.img_mlp.0": b["transformer_blocks.0.ff.net.0.proj"],
        "double_blocks.0.img_mlp.2": b["transformer_blocks.0.ff.net.2"],
        "double_blocks.0.img_mod.lin": b["transformer_blocks.0.norm1.linear"],
        "single_blocks.0.linear1": rows(3 * q + MLP, (q, b[f"{single}.attn.to_k"]), (3 * q, b[f"{single}.proj_mlp"])),
        "single_blocks.0.linear2": b[f"{single}.proj_out"],
        "final_layer.linear": b["proj_out"],
    }
    same = diffusers_lora(5, alpha=False) | {f"diffusion_model.{key}.diff_b": bias for key, bias in whole.items()}
    expected, without = sample_flux(add(dense, same, 0.8)), sample_flux(add(dense, diffusers_lora(5, False), 0.8))
    assert relative_error(without, expected) > 0.02
    for target in (model, dense):
        patched, report = apply(target, lora)
        assert "16 layers matched" in report and "ignored" not in report
        assert relative_error(sample_flux(patched), expected) < ORDER


def test_what_the_host_leaves_out_is_said(model, dense, apply):
    """A LoRA for 64 channels on a FLUX of more, and the other way round: img_in stays, everything else fits."""
    lora = host_lora(5)
    for inputs in (17, 384):  # 384: trained on FLUX Fill; only twice the channels make a control LoRA
        end = {"A": torch.ones(4, inputs), "B": torch.ones(HIDDEN, 4)}
        extra = {f"transformer.x_embedder.lora_{half}.weight": tensor for half, tensor in end.items()}
        for target in (model, dense):
            patched, report = apply(target, lora | extra)
            assert re.search(rf"1 layers skipped, as ComfyUI skips them: img_in: .*{inputs} inputs", report)
            assert "10 layers matched" in report
            assert torch.equal(sample_flux(patched), sample_flux(apply(target, lora)[0]))


def test_a_widened_input_is_said(model, apply):
    lora = host_lora(5)
    lora |= {"transformer.x_embedder.lora_A.weight": torch.zeros(4, 128)}
    lora |= {"transformer.x_embedder.lora_B.weight": torch.zeros(HIDDEN, 4)}
    _, report = apply(model, lora)
    assert "img_in takes 128 input channels instead of 64" in report and "11 layers matched" in report


@pytest.mark.parametrize("broken", [float("nan"), float("-inf")])
def test_values_that_are_not_finite(model, dense, plain, apply, broken):
    for key in ("transformer.transformer_blocks.0.attn.to_q.lora_B.weight", "transformer.proj_out.lora_A.weight"):
        lora = diffusers_lora(5)
        lora[key][1, 2] = broken
        for target in (model, dense):
            with pytest.raises(LoraError, match=rf"some\.safetensors: {re.escape(key)} holds NaN or infinite"):
                apply(target, lora)
    lora = diffusers_lora(5) | {"transformer.proj_out.alpha": torch.tensor(broken)}
    with pytest.raises(LoraError, match=r"final_layer\.linear: its alpha is"):
        apply(dense, lora)
    with pytest.raises(LoraError, match=r"some\.safetensors: the strength is"):
        apply(model, diffusers_lora(5), broken)
    assert torch.equal(sample_flux(model), plain)


def test_values_that_are_not_finite_where_nothing_reads_them(model, apply):
    lora = diffusers_lora(5) | {
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.full((4, 4), torch.nan)
    }
    assert "8 layers matched" in apply(model, lora)[1]


@pytest.mark.parametrize("alpha", [True, False])
def test_rank_0_is_nothing(model, dense, apply, alpha):
    """Trainers write such pairs for layers that they left out; alpha over rank is then a division by zero."""
    lora, without = diffusers_lora(5, alpha), diffusers_lora(5, alpha)
    for name in ("transformer_blocks.0.attn.to_q", "proj_out"):
        for end, shape in (("A", (0, SPLIT_LAYERS[name][1])), ("B", (SPLIT_LAYERS[name][0], 0))):
            lora[f"transformer.{name}.lora_{end}.weight"] = torch.zeros(shape)
        without = {key: t for key, t in without.items() if not key.startswith(f"transformer.{name}.")}
    for target in (model, dense):
        patched, report = apply(target, lora)
        assert "of rank 0, which changes nothing: transformer.proj_out." in report
        assert torch.equal(sample_flux(patched), sample_flux(apply(target, without)[0]))


def test_two_ranks(model, apply):
    lora = diffusers_lora(5)
    lora["transformer.transformer_blocks.0.ff.net.2.lora_A.weight"] = torch.zeros(6, MLP)
    with pytest.raises(LoraError, match=r"img_mlp\.2: lora_up \(or B\) has rank 4 and lora_down \(or A\) rank 6"):
        apply(model, lora)


def test_alpha_as_a_number_in_a_pickle(model, dense, tmp_path):
    lora = {key: 2.0 if key.endswith("alpha") else t for key, t in diffusers_lora(5).items()}
    torch.save(lora, tmp_path / "numbers.pt")
    pictures = [sample_flux(apply_lora_file(target, str(tmp_path / "numbers.pt"), 0.8)[0]) for target in (model, dense)]
    assert relative_error(*pictures) < ORDER


def test_errors_of_the_hosts_own_code_are_sentences(model, apply, monkeypatch):
    import comfy.lora

    def broken(*_args, **_kwargs):
        raise IndexError("list index out of range")

    monkeypatch.setattr(comfy.lora, "load_lora", broken)
    with pytest.raises(LoraError, match=r"some\.safetensors: cannot be applied to this FLUX\.1 model \(IndexError"):
        apply(model, diffusers_lora(5))


def test_a_lack_of_memory_is_not_taken_for_a_damaged_file(model, apply, monkeypatch):
    import comfy.lora

    def greedy(*_args, **_kwargs):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(comfy.lora, "load_lora", greedy)
    with pytest.raises(torch.OutOfMemoryError):
        apply(model, diffusers_lora(5))
