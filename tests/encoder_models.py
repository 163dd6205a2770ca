"""Text encoders of every class that ComfyUI has, tiny: their files as people have them, tokenizers included."""

import base64
import io
import json
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

import comfy.clip_model
import comfy.sd
import comfy.text_encoders.flux as flux
import comfy.text_encoders.gemma4 as gemma4
import comfy.text_encoders.jina_clip_2 as jina_clip_2
import comfy.text_encoders.llama as llama
import comfy.text_encoders.qwen35 as qwen35
import comfy.text_encoders.qwen_vl as qwen_vl
import comfy.text_encoders.sa3 as sa3
import comfy.text_encoders.t5 as t5
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaTokenizerFast, Qwen2Tokenizer, T5TokenizerFast

WIDTH, INNER, WORDS = 128, 256, 512
SMALL = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "hidden_size_per_layer_input": 64,
    "num_kv_shared_layers": 1,
}
SMALL_T5 = {"d_model": WIDTH, "d_ff": INNER, "num_heads": 2}
SMALL_CLIP = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_attention_heads": 2}
TINY_VISION = {"hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "num_attention_heads": 2, "head_dim": 32}
TINY_VISION |= {"num_hidden_layers": 1, "depth": 1, "num_key_value_heads": 2}


@dataclass(frozen=True)
class Encoder:
    """A text encoder as ComfyUI knows it.

    Args:
        model: its name in TEModel. types: that a file of it alone is loaded by.
        layers: so many that all that those types tap are there.
        words: where its tokenizer comes from: "host", "sentencepiece", "tekken" or "json".
        vocabulary: of the table of words; the host's tokenizers want all of theirs.
        rename: beginnings of names, as the host has them -> as files have them.
        quantized: Linears of a layer that are in 4 bits.
        encodes: ComfyUI 0.30 makes conditioning of it; of Gemma 4 only text.
    """

    model: str
    types: tuple[str, ...]
    layers: int = 3
    words: str = "host"
    vocabulary: int | None = WORDS
    rename: dict[str, str] = field(default_factory=dict)
    quantized: int = 7
    encodes: bool = True


_QWEN_WORDS = {"vocabulary": None}
_QWEN_VL = {"model.": "model.language_model.", "visual.": "model.visual."}
ENCODERS = {
    "T5-XXL": Encoder(
        "T5_XXL",
        ("chroma", "pixart", "sd3", "ltxv", "mochi", "cogvideox"),
        2,
        vocabulary=32128,
    ),
    "umT5-XXL": Encoder("T5_XXL", ("wan",), 2, "sentencepiece"),
    "T5-XXL 1.0": Encoder("T5_XXL_OLD", ("cosmos",), 2, vocabulary=32128, quantized=6),
    "T5-XL (Pile)": Encoder("T5_XL", ("stable_diffusion",), 2, vocabulary=32128),
    "T5 base": Encoder("T5_BASE", ("stable_audio",), 2, vocabulary=32128, quantized=6),
    "T5Gemma": Encoder("T5_GEMMA", ("stable_audio",), 2, "sentencepiece"),
    "Llama 3 8B": Encoder("LLAMA3_8", ("hidream",), 4, vocabulary=None),
    "Gemma 2 2B": Encoder("GEMMA_2_2B", ("lumina2", "pixeldit"), words="sentencepiece"),
    "Gemma 3 4B": Encoder("GEMMA_3_4B", ("lumina2",), words="sentencepiece"),
    "Gemma 3 12B": Encoder("GEMMA_3_12B", ("ltxv",), words="sentencepiece"),
    "Gemma 4 E4B": Encoder("GEMMA_4_E4B", ("stable_diffusion",), 6, "json", quantized=9, encodes=False),
    "Gemma 4 31B": Encoder("GEMMA_4_31B", ("stable_diffusion",), 6, "json", encodes=False),
    "Qwen2.5-VL 3B": Encoder("QWEN25_3B", ("omnigen2",), **_QWEN_WORDS),
    "Qwen2.5-VL 7B": Encoder("QWEN25_7B", ("qwen_image", "hunyuan_image", "longcat_image"), 4, **_QWEN_WORDS),
    "Qwen3 0.6B": Encoder("QWEN3_06B", ("stable_diffusion",), **_QWEN_WORDS),
    "Ovis2.5 2B": Encoder("QWEN3_2B", ("ovis",), **_QWEN_WORDS),
    "Qwen3 4B": Encoder("QWEN3_4B", ("lumina2", "flux2"), 28, **_QWEN_WORDS),
    "Qwen3 8B": Encoder("QWEN3_8B", ("flux2",), 28, **_QWEN_WORDS),
    "Qwen3-VL 4B": Encoder("QWEN3VL_4B", ("krea2", "mage", "stable_diffusion"), 36, rename=_QWEN_VL, **_QWEN_WORDS),
    "Qwen3-VL 8B": Encoder("QWEN3VL_8B", ("boogu", "joyimage"), 3, rename=_QWEN_VL, **_QWEN_WORDS),
    "Qwen3-VL 32B": Encoder("QWEN3VL_32B", ("minimax",), **_QWEN_WORDS),
    "Qwen3.5 4B": Encoder("QWEN35_4B", ("stable_diffusion",), 4, rename=_QWEN_VL, vocabulary=None, quantized=7),
    "Mistral 3 24B": Encoder("MISTRAL3_24B", ("flux2",), 31, "tekken"),
    "Ministral 3 3B": Encoder("MINISTRAL_3_3B", ("stable_diffusion",), words="tekken"),
    "CLIP-G": Encoder("CLIP_G", ("stable_diffusion",), 3, vocabulary=49408, quantized=6),
    "CLIP-L": Encoder("CLIP_L", ("stable_diffusion",), 4, vocabulary=49408, quantized=6),
}


@contextmanager
def tiny(encoder: Encoder):
    """The host builds its classes small, takes files for `encoder`, and computes in float32."""
    sizes = {**SMALL, "num_hidden_layers": encoder.layers}
    words = {} if encoder.vocabulary is None else {"vocab_size": encoder.vocabulary}
    with pytest.MonkeyPatch.context() as patch:
        for module in (llama, gemma4, jina_clip_2, qwen35, sa3):
            for kind in vars(module).values():
                if isinstance(kind, type) and kind.__module__ == module.__name__ and kind.__name__.endswith("onfig"):
                    patch.setattr(kind, "__init__", _afterwards(kind.__init__, sizes | words))
        t5_sizes = {**SMALL_T5, "num_layers": encoder.layers, **words}
        patch.setattr(t5.T5, "__init__", _with_config(t5.T5.__init__, t5_sizes))
        clip_sizes = {**SMALL_CLIP, "num_hidden_layers": encoder.layers}
        text = comfy.clip_model.CLIPTextModel
        patch.setattr(text, "__init__", _with_config(text.__init__, clip_sizes))
        for kind in (comfy.clip_model.CLIPVision, qwen35.Qwen35VisionModel, gemma4.Gemma4VisionEncoder):
            patch.setattr(kind, "__init__", _with_config(kind.__init__, TINY_VISION))
        patch.setattr(
            gemma4.Gemma4AudioEncoder,
            "__init__",
            _with_config(gemma4.Gemma4AudioEncoder.__init__, {"num_hidden_layers": 1}),
        )
        vision = qwen_vl.Qwen2VLVisionTransformer
        patch.setattr(
            vision, "__init__", _with(vision.__init__, hidden_size=64, intermediate_size=64, num_heads=2, num_layers=1)
        )
        patch.setattr(comfy.sd, "detect_te_model", lambda sd: comfy.sd.TEModel[encoder.model])
        patch.setattr(flux, "load_mistral_tokenizer", _mistral)  # it goes by names that transformers changes
        for kind in (Qwen2Tokenizer, T5TokenizerFast, LlamaTokenizerFast):  # a second of reading each time
            patch.setattr(kind, "from_pretrained", cache(kind.from_pretrained))
        load = comfy.sd.load_text_encoder_state_dicts

        def in_float32(state_dicts, model_options=None, **others):
            return load(state_dicts, model_options={"dtype": torch.float32, **(model_options or {})}, **others)

        patch.setattr(comfy.sd, "load_text_encoder_state_dicts", in_float32)
        yield


def _afterwards(init: Callable, values: dict) -> Callable:
    def changed(self, *args, **more):
        init(self, *args, **more)
        for name in values.keys() & vars(self).keys():
            setattr(self, name, values[name])
        if getattr(self, "layer_types", None):
            self.layer_types = (list(self.layer_types) * 8)[: self.num_hidden_layers]

    return changed


def _with_config(init: Callable, values: dict) -> Callable:
    def changed(self, config, *args, **more):
        init(self, {**config, **{key: v for key, v in values.items() if key in config}}, *args, **more)

    return changed


def _with(init: Callable, **values) -> Callable:
    def changed(self, *args, **more):
        init(self, *args, **{**more, **values})

    return changed


def draw_file(encoder: Encoder, seed: int = 0) -> dict[str, Tensor]:
    """What a file of it holds, BF16, random; within tiny()."""
    tokenizer = TOKENIZERS[encoder.words]()
    with torch.inference_mode():
        clip = comfy.sd.load_text_encoder_state_dicts(
            [dict(tokenizer)], clip_type=getattr(comfy.sd.CLIPType, encoder.types[0].upper())
        )
    inner = next(m.transformer for m in clip.cond_stage_model.modules() if hasattr(m, "transformer"))
    tensors = {}
    for name, tensor in random_like(inner.state_dict(), seed).items():
        new = next((new + name.removeprefix(old) for old, new in encoder.rename.items() if name.startswith(old)), name)
        tensors[new] = tensor
    return tensors | tokenizer


def random_like(wanted: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """BF16 weights that keep a signal's size, norms around 1, biases around 0."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, tensor in wanted.items():
        drawn = torch.randn(tensor.shape, generator=generator)
        drawn *= 0.1 if name.endswith("SelfAttention.q.weight") else 1.0  # T5 divides by no width
        if tensor.ndim > 1:
            drawn *= tensor.shape[-1] ** -0.5 if "embed" not in name and "shared" not in name else 1.0
        else:
            drawn = 0.1 * drawn + (0.0 if name.endswith("bias") else 1.0)
        tensors[name] = drawn.bfloat16()
    return tensors


def _sentencepiece() -> dict[str, Tensor]:
    import sentencepiece

    model = io.BytesIO()
    sentences = [" ".join(f"{a}{b}" for a in "bcdfgklmnprst" for b in ("a", "e", "i", "o", "u"))] * 8
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=64, hard_vocab_limit=False,
        character_coverage=1.0, pad_id=0, eos_id=1, bos_id=2, unk_id=3, minloglevel=2,
    )  # fmt: skip
    return {"spiece_model": torch.frombuffer(bytearray(model.getvalue()), dtype=torch.uint8)}


def _tekken() -> dict[str, Tensor]:
    vocabulary = [{"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode()} for i in range(256)]
    special = [{"rank": i, "token_str": f"<s{i}>"} for i in range(12)]
    text = json.dumps({"config": {"default_vocab_size": 268}, "vocab": vocabulary, "special_tokens": special})
    return {"tekken_model": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)}


def _mistral(data: Tensor) -> dict:
    letters = {word["token_bytes"]: word["rank"] for word in json.loads(data.numpy().tobytes())["vocab"]}
    words = {base64.b64decode(text).decode("latin-1"): 12 + rank for text, rank in letters.items()} | {"<unk>": 0}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return {"tokenizer_object": tokenizer, "legacy": False}


def _json() -> dict[str, Tensor]:
    words = {"<unk>": 3, **{chr(ord("a") + i): 10 + i for i in range(26)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return {"tokenizer_json": torch.frombuffer(bytearray(tokenizer.to_str().encode()), dtype=torch.uint8)}


TOKENIZERS = {"host": dict, "sentencepiece": _sentencepiece, "tekken": _tekken, "json": _json}
