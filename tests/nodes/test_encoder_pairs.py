"""Two text encoders of one CLIP: one of them or both in 4 bits."""

import comfy.ops
import comfy.sd
import comfy.text_encoders.jina_clip_2 as jina_clip_2
import pytest
import torch
from encoder_models import ENCODERS, TOKENIZERS, draw_file, random_like, tiny
from safetensors.torch import save_file
from sampling import relative_error

from svdquant_pack.nodes.host.model.quantized_linear import SVDQuantLinear
from svdquant_pack.nodes.host.model.text_encoder import load_text_encoder
from svdquant_pack.nodes.host.quantize.encoder_run import quantize_text_encoder


@pytest.fixture
def made(host, tmp_path):
    """Title -> the 4-bit file and the tensors that it was made of."""

    def make(title):
        with tiny(ENCODERS[title]):
            tensors = draw_file(ENCODERS[title])
            save_file(tensors, tmp_path / f"{title}.safetensors")
            path = tmp_path / f"{title}-awq-int4.safetensors"
            quantize_text_encoder(tmp_path / f"{title}.safetensors", path, group=64, prompts=None, compare=False)
        return str(path), tensors

    return make


def cond_of(clip):
    with torch.inference_mode():
        return clip.encode_from_tokens(clip.tokenize("a fox"), return_pooled=True)


def dense(tensors, kind):
    return comfy.sd.load_text_encoder_state_dicts([dict(t) for t in tensors], clip_type=comfy.sd.CLIPType[kind])


def test_both_in_4_bits(made):
    (qwen, qwen_tensors), (clip_l, clip_tensors) = made("Qwen2.5-VL 7B"), made("CLIP-L")
    with tiny(ENCODERS["Qwen2.5-VL 7B"]), torch.inference_mode():
        ours = load_text_encoder([clip_l, qwen], [], "kandinsky5", "default")
        theirs = dense([clip_tensors, qwen_tensors], "KANDINSKY5")
        for found, expected in zip(cond_of(ours), cond_of(theirs), strict=True):
            assert 1e-4 < relative_error(found, expected) < 0.45
    quantized = [n for n, m in ours.cond_stage_model.named_modules() if isinstance(m, SVDQuantLinear) and m.quantized]
    assert {name.split(".")[0] for name in quantized} == {"qwen25_7b", "clip_l"}


def test_one_beside_an_encoder_in_16_bits(made, tmp_path):
    gemma, gemma_tensors = made("Gemma 3 4B")
    with tiny(ENCODERS["Gemma 3 4B"]), torch.inference_mode():
        network = jina_clip_2.XLMRobertaModel({}, torch.float32, "cpu", comfy.ops.disable_weight_init)
        jina_tensors = random_like(network.state_dict()) | TOKENIZERS["sentencepiece"]()
        save_file(jina_tensors, tmp_path / "jina.safetensors")
        ours = load_text_encoder([str(tmp_path / "jina.safetensors"), gemma], [], "newbie", "default")
        theirs = dense([jina_tensors, gemma_tensors], "NEWBIE")
        (cond, pooled), (dense_cond, dense_pooled) = cond_of(ours), cond_of(theirs)
    assert torch.equal(pooled, dense_pooled) and pooled.std() > 0
    assert 1e-4 < relative_error(cond, dense_cond) < 0.45
