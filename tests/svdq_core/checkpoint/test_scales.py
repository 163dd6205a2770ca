"""Scales that cannot be: of the other scheme's dtype, of nothing, of no number."""

import pytest
import torch
from checkpoint_files import TINY, read_tensors, write_tensors

from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.errors import CheckpointError

LAYER, MODULATION = "transformer_blocks.0.out_proj", "transformer_blocks.0.norm1.linear"
NAN, INFINITE = float("nan"), float("inf")


def whole(value):
    return lambda t: torch.full_like(t, value) if t.dtype != torch.float8_e4m3fn else t.new_full(t.shape, value)


def one(value):
    def change(tensor):
        changed = tensor.clone()
        changed.view(-1)[0] = value
        return changed

    return change


WRONG = [
    ("nvfp4", f"{LAYER}.wtscale", whole(0.0), "wtscale is 0.0, expected more than 0"),
    ("nvfp4", f"{LAYER}.wtscale", whole(-1.0), "wtscale is -1.0, expected more than 0"),
    ("nvfp4", f"{LAYER}.wtscale", whole(NAN), "wtscale holds NaN"),
    ("nvfp4", f"{LAYER}.wtscale", lambda t: t.to(torch.int32), "wtscale is int32, expected bfloat16"),
    ("nvfp4", f"{LAYER}.wscales", lambda t: t.float().bfloat16(), "wscales is bfloat16 .* one for each 16 inputs"),
    ("nvfp4", f"{LAYER}.wscales", lambda t: t.view(torch.uint8), "wscales is uint8 .* expected in float8_e4m3fn"),
    ("nvfp4", f"{LAYER}.wscales", lambda t: t.float().to(torch.float8_e5m2), "wscales is float8_e5m2 .* as in NVFP4"),
    ("nvfp4", f"{LAYER}.wscales", whole(0.0), "wscales holds zeros only"),
    ("int4", f"{LAYER}.wscales", lambda t: t.to(torch.float8_e4m3fn), "one for each 64 inputs; .* as in INT4"),
    ("int4", f"{LAYER}.wscales", lambda t: t.view(torch.int16), "wscales is int16, expected bfloat16"),
    ("int4", f"{LAYER}.wscales", whole(0.0), "wscales holds zeros only"),
    ("int4", f"{LAYER}.wscales", one(INFINITE), "wscales holds NaN or infinite"),
    ("int4", f"{LAYER}.smooth", one(0.0), "smooth_factor holds zeros"),
    ("int4", f"{LAYER}.smooth", one(INFINITE), "smooth_factor holds NaN or infinite"),
    ("int4", f"{LAYER}.smooth", one(NAN), "smooth_factor holds NaN or infinite"),
    ("int4", f"{LAYER}.smooth", lambda t: t.view(torch.int16), "smooth_factor is int16, expected bfloat16"),
    ("int4", f"{LAYER}.bias", lambda t: t.view(torch.int16), "bias is int16, expected bfloat16"),
    ("int4", f"{LAYER}.bias", one(NAN), "bias holds NaN or infinite"),
    ("int4", f"{LAYER}.lora_up", lambda t: t.view(torch.int16), "proj_up is int16, expected bfloat16"),
    ("int4", f"{MODULATION}.wzeros", lambda t: t.view(torch.int16), "wzeros is int16, expected bfloat16"),
    ("int4", f"{MODULATION}.wzeros", one(NAN), "wzeros holds NaN or infinite"),
    ("int4", f"{MODULATION}.wscales", whole(0.0), "wscales holds zeros only"),
    ("int4", f"{MODULATION}.bias", lambda t: t.view(torch.int16), "bias is int16, expected bfloat16"),
]


@pytest.mark.parametrize(("precision", "name", "change", "message"), WRONG, ids=[f"{w[1]}-{w[3][:25]}" for w in WRONG])
def test_it_is_refused_in_words(precision, name, change, message, tmp_path):
    tensors, metadata = read_tensors(TINY[precision])
    path = write_tensors(tmp_path / "x.safetensors", tensors | {name: change(tensors[name])}, metadata)
    with pytest.raises(CheckpointError, match=message) as error:
        read_checkpoint(Checkpoint(path))
    assert name.rpartition(".")[0] in str(error.value)


def test_a_layer_of_zeros_may_have_scales_of_zeros(tmp_path):
    tensors, metadata = read_tensors(TINY["int4"])
    nothing = {f"{LAYER}.{kind}": torch.zeros_like(tensors[f"{LAYER}.{kind}"]) for kind in ("qweight", "wscales")}
    model = read_checkpoint(Checkpoint(write_tensors(tmp_path / "x.safetensors", tensors | nothing, metadata)))
    assert not model.layers["double_blocks.0.img_attn.proj"].parts[0]["wscales"].any()
