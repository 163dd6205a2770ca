"""A tiny model of every video family of the host. What the published ones are detected as stands in published.json."""

import json
from typing import Any

import comfy.utils
import torch
from families.image_models import TWO_BLOCKS
from families.network import Family, Sizes, published

_WAN = {"dim": 256, "num_heads": 2, "ffn_dim": 512, "num_layers": 2}
_H3 = {
    "num_layers": 2,
    "token_refiner_num_layers": 1,
    "hidden_size": 256,
    "attention_head_dim": 64,
    "num_attention_heads": 4,
    "ffn_hidden_size": 512,
    "text_dim": 128,
    "rope_inv_freq_len": 8,
}
_LTX23_FILE = {key: value for key, value in published("ltx23").items() if key not in ("image_model", "num_layers")}
_LTX23_FILE = {k: v for k, v in _LTX23_FILE.items() if k not in ("attention_head_dim", "cross_attention_dim")}


def _h3(c: dict[str, Any], s: Sizes):
    height, width = (n // 2 for n in s.side)
    latent, shapes = comfy.utils.pack_latents([s.normal(24, s.frames, height, width), s.normal(32, 2, 5)])
    return latent, {"c_crossattn": s.text(c["text_dim"]), "latent_shapes": shapes}


def _ltx23(c: dict[str, Any], s: Sizes):
    height, width = (n // 4 for n in s.side)
    latent, shapes = comfy.utils.pack_latents([s.normal(128, s.frames, height, width), s.normal(8, 6, 16)])
    text = s.normal(128, c["cross_attention_dim"] + c["audio_cross_attention_dim"])
    return latent, {"c_crossattn": text, "latent_shapes": shapes, "frame_rate": 25, "attention_mask": None}


def _text(channels: int, width: int, shrink: int = 2, **more: Any):
    return lambda c, s: (s.video(channels, shrink), {"c_crossattn": s.text(width)} | more)


def _with(*extra: tuple[str, int | tuple[int, ...]], channels: int, width: int):
    """Inputs with further tensors: of a video with so many channels, or of a shape."""

    def inputs(c: dict[str, Any], s: Sizes):
        more = {name: s.video(size) if isinstance(size, int) else s.normal(*size) for name, size in extra}
        return s.video(channels), {"c_crossattn": s.text(width)} | more

    return inputs


def _hunyuan(c: dict[str, Any], s: Sizes):
    return s.video(16), {"c_crossattn": s.text(64), "y": s.normal(768), "guidance": s.number(6.0)}


def _vace(c: dict[str, Any], s: Sizes):
    context = s.video(96)[:, None]
    return s.video(16), {"c_crossattn": s.text(4096), "vace_strength": [1.0], "vace_context": context}


VIDEO_MODELS = {
    "minimax_h3": Family(
        "minimax.model:MiniMaxH3Model",
        published("minimax_h3"),
        _H3 | {"timestep_input_dim": 32, "time_embed_hidden_size": 128, "time_embed_dim": 64},
        _h3,
        batches=False,
    ),
    "minimax_h3_curve": Family(
        "minimax.model:MiniMaxH3Model",
        published("minimax_h3_curve"),
        _H3 | {"adaln_curve_grid": 17},
        _h3,
        batches=False,
    ),
    "ltxv": Family(
        "lightricks.model:LTXVModel",
        published("ltxv"),
        {"num_layers": 2, "attention_head_dim": 8, "cross_attention_dim": 256, "caption_channels": 64},
        _text(128, 64, 4, attention_mask=None, frame_rate=25),
        more={"mask": lambda c, s: {"attention_mask": (torch.arange(s.tokens) < s.tokens - 5).long()[None]}},
    ),
    "ltx23": Family(
        "lightricks.av_model:LTXAVModel",
        published("ltx23"),
        {
            "num_layers": 2,
            "attention_head_dim": 8,
            "cross_attention_dim": 256,
            "audio_cross_attention_dim": 128,
            "audio_attention_head_dim": 4,
            "connector_attention_head_dim": 8,
            "audio_connector_attention_head_dim": 4,
            "connector_num_layers": 1,
            "caption_channels": 64,
        },
        _ltx23,
        metadata={"config": json.dumps({"transformer": _LTX23_FILE})},
        batches=False,
    ),
    "wan_t2v": Family("wan.model:WanModel", published("wan_t2v"), _WAN, _text(16, 4096)),
    "wan_i2v": Family(
        "wan.model:WanModel",
        published("wan_i2v"),
        _WAN,
        _with(("c_concat", 20), ("clip_fea", (257, 1280)), channels=16, width=4096),
    ),
    "wan22_5b": Family("wan.model:WanModel", published("wan22_5b"), _WAN, _text(48, 4096)),
    "wan_vace": Family("wan.model:VaceWanModel", published("wan_vace"), _WAN | {"vace_layers": 2}, _vace),
    "hunyuan_video": Family("hunyuan_video.model:HunyuanVideo", published("hunyuan_video"), TWO_BLOCKS, _hunyuan),
    "hunyuan_video15": Family(
        "hunyuan_video.model:HunyuanVideo",
        published("hunyuan_video15"),
        {"hidden_size": 256, "num_heads": 2, "depth": 2, "context_in_dim": 64},
        _with(("c_concat", 33), ("clip_fea", (9, 1152)), ("txt_byt5", (6, 1472)), channels=32, width=64),
    ),
    "cosmos_predict2": Family(
        "cosmos.predict2:MiniTrainDIT",
        published("cosmos_predict2"),
        {"model_channels": 256, "num_blocks": 2, "num_heads": 2, "crossattn_emb_channels": 128, "adaln_lora_dim": 64},
        _text(16, 128),
    ),
    "kandinsky5": Family(
        "kandinsky5.model:Kandinsky5",
        published("kandinsky5"),
        {"model_dim": 256, "time_dim": 64, "ff_dim": 512, "num_text_blocks": 1, "num_visual_blocks": 2},
        _with(("y", (768,)), ("c_concat", 17), channels=16, width=3584),
    ),
    "cogvideox": Family(
        "cogvideo.model:CogVideoXTransformer3DModel",
        published("cogvideox"),
        {"num_attention_heads": 4, "time_embed_dim": 64, "num_layers": 2, "text_embed_dim": 64},
        _text(16, 64),
        sigma=1.0,
    ),
}
