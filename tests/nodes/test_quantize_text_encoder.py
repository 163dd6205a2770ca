"""Quantize Text Encoder: a file of every class that ComfyUI has, quantized, loaded by every type, saved and loaded."""

from contextlib import contextmanager
from pathlib import Path

import comfy.lora
import comfy.sd
import pytest
import torch
from comfy_extras.nodes_model_merging import CLIPSave
from encoder_models import ENCODERS, draw_file, tiny
from safetensors.torch import save_file
from sampling import relative_error, rounding

from svdquant_pack.nodes.host.model.quantized_linear import SVDQuantLinear
from svdquant_pack.nodes.host.model.text_encoder import load_text_encoder
from svdquant_pack.svdq_core.apply_layer import dense_weight

PROMPT = "a photo of a fox"
SAME = rounding(3e-6)
MOST_WITH_LORA = 21
FORGIVEN = 0.45  # of the text, whose weights are random: they forgive nothing


def tensors_of(clip, prompt=PROMPT):
    with torch.inference_mode():
        found = clip.encode_from_tokens(clip.tokenize(prompt), return_dict=True)
    return [v.float() for _, v in sorted(found.items()) if torch.is_tensor(v) and v.is_floating_point() and v.std() > 0]


def generated(clip, prompt=PROMPT):
    with torch.inference_mode():
        return clip.generate(clip.tokenize(prompt), do_sample=False, max_length=4)


def dense(ours, tensors, kind):
    """The host's own encoder, of what the codes stand for."""
    clip = load_dense(tensors, kind)
    modules = dict(clip.cond_stage_model.named_modules())
    for name, module in ours.cond_stage_model.named_modules():
        if isinstance(module, SVDQuantLinear):
            modules[name].weight = torch.nn.Parameter(dense_weight(module.layer()), requires_grad=False)
    return clip


def load_dense(tensors, kind):
    with torch.inference_mode():
        return comfy.sd.load_text_encoder_state_dicts([dict(tensors)], clip_type=comfy.sd.CLIPType[kind.upper()])


def load(paths, kind):
    with torch.inference_mode():
        return load_text_encoder([str(path) for path in paths], [], kind, "default")


def layers_of(clip):
    return [m for m in clip.cond_stage_model.modules() if isinstance(m, SVDQuantLinear) and m.quantized]


@contextmanager
def quantized(host, title, tensors):
    """The path of a file of the node, and its report; both files are gone afterwards."""
    source = host.model_folder("text_encoders") / f"tiny {title}.safetensors"
    save_file(tensors, source)
    path, report = host.call(
        "SVDQuantQuantizeTextEncoder",
        text_encoder=source.name,
        filename_prefix=f"quantized/{title}",
        overwrite=True,
        compare=False,
    )
    yield path, report
    source.unlink()
    Path(path).unlink()


@pytest.mark.parametrize("title", ENCODERS)
def test_every_class(title, host):
    encoder = ENCODERS[title]
    with tiny(encoder), quantized(host, title, tensors := draw_file(encoder)) as (path, report):
        assert (
            "at 4.50 bits" in report
            and "GiB" in report
            and path.endswith(f"clip/quantized/{title}-awq-int4.safetensors")
        )
        for kind in encoder.types:
            ours, original = load([path], kind), load_dense(tensors, kind)
            theirs = dense(ours, tensors, kind)
            assert len(layers_of(ours)) >= encoder.quantized * (encoder.layers - 1)
            if not encoder.encodes:
                assert generated(ours) == generated(theirs)
                continue
            for found, same, expected in zip(*map(tensors_of, (ours, theirs, original)), strict=True):
                assert relative_error(found, same) < SAME
                assert 1e-4 < relative_error(found, expected) < FORGIVEN
        check_lora(ours, theirs, encoder)
        check_saved(host, ours, encoder)


def check_lora(ours, theirs, encoder):
    """A LoRA on every quantized layer that ComfyUI has a name for."""
    modules = dict(ours.cond_stage_model.named_modules())
    keys = {target: key for key, target in comfy.lora.model_lora_keys_clip(ours.cond_stage_model, {}).items()}
    named = {target.removesuffix(".weight"): key for target, key in keys.items()}
    chosen = {named[name]: m for name, m in modules.items() if isinstance(m, SVDQuantLinear) and name in named}
    assert len(chosen) == len(layers_of(ours))
    generator, tensors = torch.Generator().manual_seed(2), {}
    for key, module in list(chosen.items())[:MOST_WITH_LORA]:
        down = torch.randn(4, module.in_features, generator=generator) * module.in_features**-0.5
        up = 0.2 * torch.randn(module.out_features, 4, generator=generator)
        tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
    if not encoder.encodes:
        return
    before = tensors_of(ours)
    with torch.inference_mode():
        mine, reference = (comfy.sd.load_lora_for_models(None, c, dict(tensors), 0, 0.7)[1] for c in (ours, theirs))
    for found, same, plain in zip(tensors_of(mine), tensors_of(reference), before, strict=True):
        assert relative_error(found, same) < SAME
        assert relative_error(found, plain) > 0.01
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(ours), before, strict=True))


def check_saved(host, clip, encoder):
    """What CLIPSave writes of it is read again, a tokenizer in a file of its own included."""
    with torch.inference_mode():
        CLIPSave().save(clip, "clip/saved")
    saved = sorted((host.output / "clip").glob("saved*.safetensors"), key=lambda file: -file.stat().st_size)
    try:
        again = load(saved, encoder.types[-1])
    finally:
        for file in saved:
            file.unlink()
    assert len(saved) < 3 and len(layers_of(again)) == len(layers_of(clip))
    if encoder.encodes:
        for found, before in zip(tensors_of(again), tensors_of(clip), strict=True):
            assert torch.equal(found, before)
