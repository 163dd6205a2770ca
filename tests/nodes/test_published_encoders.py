"""Text encoders at their published sizes, without memory: what is in 4 bits, and that ComfyUI still knows them."""

import re
from pathlib import Path

import comfy.ops
import comfy.sd
import comfy.text_encoders.gemma4 as gemma4
import comfy.text_encoders.llama as llama
import comfy.text_encoders.minimax as minimax
import comfy.text_encoders.qwen3vl as qwen3vl
import comfy.text_encoders.qwen35 as qwen35
import comfy.text_encoders.t5 as t5
import pytest
import torch
from encoder_models import ENCODERS
from torch import nn

from svdquant_pack.nodes.host.model.encoder_types import TYPES
from svdquant_pack.nodes.host.model.placeholder import Packed, placeholder
from svdquant_pack.svdq_core.blob import BlobLayout
from svdquant_pack.svdq_core.checkpoint import Checkpoint
from svdquant_pack.svdq_core.quantize.encoder_plan import plan_text_encoder

DOCS = Path(__file__).parents[2] / "docs" / "quantizing.md"
T5_XXL = {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128, "d_kv": 64}
T5_XXL |= {"dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True, "model_type": "t5", "layer_norm_epsilon": 1e-6}
UMT5_XXL = T5_XXL | {"vocab_size": 256384, "model_type": "umt5"}
# title in ENCODERS -> class and its options, parameters in 4 bits (percent) as the documentation has them
PUBLISHED = {
    "T5-XXL": (t5.T5, T5_XXL, 97),
    "umT5-XXL": (t5.T5, UMT5_XXL, 82),
    "Llama 3 8B": (llama.Llama2, {}, 93),
    "Gemma 2 2B": (llama.Gemma2_2B, {}, 77),
    "Gemma 3 4B": (llama.Gemma3_4B, {}, 83),
    "Gemma 3 12B": (llama.Gemma3_12B, {}, 88),
    "Gemma 4 31B": (gemma4.Gemma4_31B, {}, 94),
    "Qwen2.5-VL 3B": (llama.Qwen25_3B, {}, 90),
    "Qwen2.5-VL 7B": (llama.Qwen25_7BVLI, {}, 84),
    "Qwen3 4B": (llama.Qwen3_4B, {}, 90),
    "Qwen3 8B": (llama.Qwen3_8B, {}, 85),
    "Qwen3-VL 4B": (qwen3vl._make_qwen3vl_model("qwen3vl_4b"), {}, 82),
    "Qwen3-VL 8B": (qwen3vl._make_qwen3vl_model("qwen3vl_8b"), {}, 79),
    "Qwen3-VL 32B": (minimax.MiniMaxQwen3VL, {}, 95),
    "Qwen3.5 4B": (type("Qwen35", (qwen35.Qwen35,), {"model_type": "qwen35_4b"}), {}, 79),
    "Ovis2.5 2B": (llama.Ovis25_2B, {}, 82),
    "Mistral 3 24B": (llama.Mistral3Small24B, {}, 97),
    "Ministral 3 3B": (llama.Ministral3_3B, {}, 88),
}


class Shapes(Checkpoint):
    """Names and shapes of a file, without one."""

    def __init__(self, shapes):
        self.shapes, self.prefix = shapes, ""

    def __iter__(self):
        return iter(self.shapes)

    def __contains__(self, name):
        return name in self.shapes

    def dtype(self, name):
        return "BF16"

    def shape(self, name):
        return self.shapes[name]


def in_file(title, name):
    rename = ENCODERS[title].rename
    return next((new + name.removeprefix(old) for old, new in rename.items() if name.startswith(old)), name)


@pytest.mark.parametrize("title", PUBLISHED)
def test_the_share_in_4_bits(title, host):
    kind, options, percent = PUBLISHED[title]
    made = kind(dict(options), torch.bfloat16, "meta", comfy.ops.disable_weight_init)
    tensors = {in_file(title, name): tensor for name, tensor in made.state_dict().items()}
    plan = plan_text_encoder(Shapes({name: tuple(t.shape) for name, t in tensors.items()}), 128)
    linears = {in_file(title, n) for n, m in made.named_modules() if isinstance(m, nn.Linear)}
    assert set(plan.names) <= linears and round(100 * plan.share()) == percent
    assert {n for n in linears - set(plan.names) if ".layers." in n and "vis" not in n and "audio" not in n} == set()
    assert all(layer.parts.group == 128 for layer in plan.quantized)
    for layer in plan.quantized:
        packed = Packed(torch.zeros(1, dtype=torch.uint8), BlobLayout(layer.in_features, layer.out_features, ()))
        tensors[f"{layer.name}.weight"] = placeholder(packed, torch.bfloat16)
    assert comfy.sd.detect_te_model(tensors) is comfy.sd.TEModel[ENCODERS[title].model]


def table() -> list[str]:
    """What the documentation says: encoder, types that read it, share in 4 bits."""
    lines = ["| encoder | ComfyUI's types | parameters in 4 bits |", "|---|---|---|"]
    for title, encoder in ENCODERS.items():
        kinds = [name for name, kind in TYPES.items() if title in re.split(", | or ", kind.first)]
        kinds = list(dict.fromkeys([*(k for k in encoder.types if k != "stable_diffusion"), *kinds]))
        words = ", ".join(kinds) or "any: ComfyUI goes by the file"
        share = f"{PUBLISHED[title][2]} %" if title in PUBLISHED else "not counted"
        lines.append(f"| {title} | {words}{'' if encoder.encodes else ' (generates text only)'} | {share} |")
    return lines


def test_the_table_of_the_documentation():
    assert "\n".join(table()) in DOCS.read_text(encoding="utf-8"), "\n".join(table())


def test_every_type_reads_an_encoder_that_is_tested():
    text = "\n".join(table())
    untested = {name for name in TYPES if f" {name}" not in text}
    assert untested == {"lens", "stable_diffusion"}  # gpt-oss has its own 4 bits
