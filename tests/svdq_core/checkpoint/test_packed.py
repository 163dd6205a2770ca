"""Files that ComfyUI's own save nodes write: the blob and its layout come back, whatever is wrong with them is said."""

import json

import pytest
import torch
from checkpoint_files import TINY, write_pixart, write_tensors
from model_compare import differences
from packed_files import as_bytes, packed_tensors

from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.errors import CheckpointError

QKV = "double_blocks.0.img_attn.qkv"


@pytest.mark.parametrize("kind", [*TINY, "pixart"])
@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.diffusion_model."])
def test_the_model_comes_back(kind, prefix, tmp_path):
    tensors, model = packed_tensors(TINY[kind] if kind in TINY else write_pixart(tmp_path / "pixart.safetensors"))
    tensors = {prefix + name: tensor for name, tensor in tensors.items()}
    if prefix.startswith("model."):
        tensors |= {"vae.decoder.weight": torch.ones(2), "text_encoders.clip_l.x": torch.ones(1)}
    found = read_checkpoint(Checkpoint(write_tensors(tmp_path / "x.safetensors", tensors)))
    assert differences(found, model) == []


def layout_of(tensors):
    return json.loads(bytes(tensors[f"{QKV}.svdq_layout"].tolist()))


def changed(change):
    def apply(tensors):
        layout = layout_of(tensors)
        change(layout, layout["parts"][0])
        tensors[f"{QKV}.svdq_layout"] = as_bytes(json.dumps(layout))

    return apply


def first_slice(**values):
    return changed(lambda layout, part: part["slices"]["qweight"].update(values))


DAMAGE = {
    "no weight": (lambda t: t.pop(f"{QKV}.weight"), f"missing tensor: {QKV}.weight"),
    "no layout": (lambda t: t.pop(f"{QKV}.svdq_layout"), "qkv.weight is uint8"),
    "no bias": (lambda t: t.pop(f"{QKV}.bias"), f"missing tensor: {QKV}.bias"),
    "no JSON": (lambda t: t.update({f"{QKV}.svdq_layout": as_bytes("{")}), "its layout does not fit"),
    "nested JSON": (lambda t: t.update({f"{QKV}.svdq_layout": as_bytes("[" * 50_000)}), "its layout does not fit"),
    "no text": (lambda t: t.update({f"{QKV}.svdq_layout": torch.full((9,), 255, dtype=torch.uint8)}), "does not fit"),
    "a huge layout": (
        lambda t: t.update({f"{QKV}.svdq_layout": torch.zeros(10**6, dtype=torch.uint8)}),
        "no rows of bytes",
    ),
    "float blob": (lambda t: t.update({f"{QKV}.weight": t[f"{QKV}.weight"].float()}), "no rows of bytes"),
    "short blob": (lambda t: t.update({f"{QKV}.weight": t[f"{QKV}.weight"][:5000]}), "its layout does not fit"),
    "negative offset": (first_slice(offset=-256), "its layout does not fit"),
    "odd offset": (first_slice(offset=1), "its layout does not fit"),
    "offset past the end": (first_slice(offset=1 << 40), "its layout does not fit"),
    "huge shape": (first_slice(shape=[10**9, 10**9]), "its layout does not fit"),
    "boolean shape": (first_slice(shape=[True, 128]), "its layout does not fit"),
    "a dtype that is a function": (first_slice(dtype="load"), "its layout does not fit"),
    "a dtype that is none": (first_slice(dtype="os"), "its layout does not fit"),
    "unknown scheme": (changed(lambda layout, part: part.update(scheme="int3")), "its layout does not fit"),
    "parts that do not tile": (changed(lambda layout, part: part.update(rows=[0, 500])), "do not tile 768 outputs"),
    "another size": (changed(lambda layout, part: layout.update(out_features=1024)), "do not tile 1024 outputs"),
    "joined parts": (changed(lambda layout, part: part.update(pieces=[[384, 16], [384, 16]])), "no file holds"),
    "no parts": (changed(lambda layout, part: layout.update(parts=[])), "its layout does not fit"),
    "a stranger": (lambda t: t.update(extra=torch.ones(1)), "unexpected tensor: extra"),
    "a gap": (lambda t: t.pop("img_in.bias"), "missing tensor: img_in.bias"),
    "NaN": (
        lambda t: t.update({"img_in.bias": t["img_in.bias"] * float("nan")}),
        "img_in.bias holds NaN",
    ),
}


@pytest.mark.parametrize(("change", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(change, message, tmp_path):
    tensors, _ = packed_tensors()
    change(tensors)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(Checkpoint(write_tensors(tmp_path / "x.safetensors", tensors)))
    assert str(caught.value).startswith("x.safetensors: ") and message in str(caught.value)
