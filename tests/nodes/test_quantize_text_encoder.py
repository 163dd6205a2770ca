"""Quantize Text Encoder: a file of every kind that ComfyUI has, loaded again, with nearly the same output."""

import comfy.ops
import comfy.sd
import comfy.text_encoders.llama as llama
import comfy.text_encoders.qwen3vl as qwen3vl
import comfy.text_encoders.t5 as t5
import pytest
import torch
from safetensors.torch import save_file
from sampling import relative_error
from torch import nn

from svdquant_pack.nodes.host.model.quantized_linear import SVDQuantLinear
from svdquant_pack.nodes.host.model.text_encoder import load_text_encoder
from svdquant_pack.svdq_core.checkpoint import Checkpoint
from svdquant_pack.svdq_core.quantize.encoder_plan import plan_text_encoder

CPU = torch.device("cpu")
T5 = {"d_model": 128, "d_ff": 256, "num_layers": 2, "num_heads": 2, "vocab_size": 64}
QWEN = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "vocab_size": 64}
QWEN |= {"num_attention_heads": 2, "num_key_value_heads": 1}
T5_FIXED = {
    "dense_act_fn": "gelu_pytorch_tanh",
    "is_gated_act": True,
    "model_type": "t5",
    "layer_norm_epsilon": 1e-6,
    "d_kv": 64,
}
TOKENS = [[(token, 1.0) for token in (5, 9, 33, 60, 1, 0, 0, 0)]]
# kind, ComfyUI's own name of it, its class, its sizes, name of its options, name of its tokens
KINDS = {
    "T5": ("chroma", "T5_XXL", t5.T5, T5, "t5xxl", T5_FIXED | T5),
    "Qwen3": ("lumina2", "QWEN3_4B", llama.Qwen3_4B, QWEN, "qwen3_4b", QWEN),
}


@pytest.mark.parametrize("title", KINDS)
def test_quantize_and_load(title, host, monkeypatch):
    kind, model, network, sizes, name, config = KINDS[title]
    with torch.inference_mode():
        dense = network(dict(config), torch.float32, CPU, comfy.ops.disable_weight_init)
    generator, tensors = torch.Generator().manual_seed(0), {}
    for key, tensor in dense.state_dict().items():
        drawn = torch.randn(tensor.shape, generator=generator)
        drawn *= 0.1 if key.endswith("SelfAttention.q.weight") else 1.0  # T5 divides by no width
        tensors[key] = drawn * tensor.shape[-1] ** -0.5 if tensor.ndim > 1 else 1 + 0.1 * drawn
    tensors = {key: tensor.bfloat16() for key, tensor in tensors.items()}
    source = f"tiny-{title}.safetensors"
    save_file(tensors, host.model_folder("text_encoders") / source)
    path, report = host.call("SVDQuantQuantizeTextEncoder", text_encoder=source, filename_prefix=title, overwrite=True)
    assert "layers in" in report and "relative output error" in report and "GiB" in report

    load = comfy.sd.load_text_encoder_state_dicts

    def load_tiny(state_dicts, model_options, **others):
        options = {"dtype": torch.float32, f"{name}_model_config": dict(sizes)} | model_options
        return load(state_dicts, model_options=options, **others)

    monkeypatch.setattr(comfy.sd, "load_text_encoder_state_dicts", load_tiny)
    monkeypatch.setattr(comfy.sd, "detect_te_model", lambda sd: getattr(comfy.sd.TEModel, model))
    with torch.inference_mode():
        ours = load_text_encoder([path], [], kind, "default")
        theirs = load_tiny(
            [{key: tensor.float() for key, tensor in tensors.items()}],
            {},
            clip_type=getattr(comfy.sd.CLIPType, kind.upper()),
        )
        found, expected = (clip.encode_from_tokens({name: TOKENS}) for clip in (ours, theirs))
    layers = [m for m in ours.cond_stage_model.modules() if isinstance(m, SVDQuantLinear)]
    assert len(layers) == sum(isinstance(m, nn.Linear) for m in dense.modules())
    assert expected.std() > 0 and relative_error(found, expected) < 0.3  # random weights forgive nothing
    assert ours.patcher.model_size() < 0.45 * theirs.patcher.model_size() or title == "T5"


class Shapes(Checkpoint):
    """Names and shapes of one of ComfyUI's encoders at its published size, without a file."""

    def __init__(self, network: nn.Module):
        self.shapes, self.prefix = {n: tuple(t.shape) for n, t in network.state_dict().items()}, ""

    def __iter__(self):
        return iter(self.shapes)

    def __contains__(self, name):
        return name in self.shapes

    def dtype(self, name):
        return "BF16"

    def shape(self, name):
        return self.shapes[name]


@pytest.mark.parametrize(
    ("network", "config", "least"),
    [
        (llama.Llama2, {}, 0.86),
        (llama.Qwen25_7BVLI, {}, 0.77),
        (llama.Qwen3_4B, {}, 0.89),
        (llama.Gemma2_2B, {}, 0.77),
        (llama.Gemma3_12B, {}, 0.88),
        (
            t5.T5,
            T5_FIXED | {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128},
            0.97,
        ),
    ],
    ids=["Llama 3", "Qwen2.5-VL", "Qwen3", "Gemma 2", "Gemma 3", "T5-XXL"],
)
def test_the_share_of_published_encoders(host, network, config, least):
    """Every planned layer is a Linear of ComfyUI's class, and they are nearly all but the table of words."""
    made = network(dict(config), torch.bfloat16, "meta", comfy.ops.disable_weight_init)
    plan = plan_text_encoder(Shapes(made))
    linears = {n for n, m in made.named_modules() if isinstance(m, nn.Linear)}
    assert set(plan.names) <= linears and plan.share() > least
    assert {n for n in linears - set(plan.names) if ".layers." in n and "vis" not in n} == set()


def test_qwen3_vl(host):
    classes = [c for c in vars(qwen3vl).values() if isinstance(c, type) and issubclass(c, nn.Module)]
    made = next(
        (c({}, torch.bfloat16, "meta", comfy.ops.disable_weight_init) for c in classes if c.__name__ == "Qwen3VL"), None
    )
    if made is None:
        pytest.skip("this ComfyUI has no class of that name")
    plan = plan_text_encoder(Shapes(made))
    assert plan.share() > 0.7 and all("visual" not in name for name in plan.names)
