"""A tiny model of every image family of the host. What the published ones are detected as stands in published.json."""

from typing import Any

import torch
from families.network import Family, Sizes, published

TWO_BLOCKS = {"hidden_size": 256, "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "context_in_dim": 64}


def _flux(c: dict[str, Any], s: Sizes):
    return s.image(16), {"c_crossattn": s.text(c["context_in_dim"]), "y": s.normal(768), "guidance": s.number(3.5)}


def _flux_control(c: dict[str, Any], s: Sizes):
    residual = 0.1 * s.normal(s.side[0] * s.side[1] // 4, c["hidden_size"])
    return {"control": {"input": [residual], "output": [residual]}}


def _unet(c: dict[str, Any], s: Sizes):
    more = {"y": s.normal(c["adm_in_channels"])} if c["adm_in_channels"] else {}
    return s.image(4), {"c_crossattn": s.text(c["context_dim"])} | more


def _unet_control(c: dict[str, Any], s: Sizes):
    """What a ControlNet adds to the deepest of the skip connections."""
    shrink = 2 ** (len(c["channel_mult"]) - 1)
    residual = s.normal(c["model_channels"] * c["channel_mult"][-1], *(n // shrink for n in s.side))
    return {"control": {"output": [residual], "input": [], "middle": []}}


def _hidream(c: dict[str, Any], s: Sizes):
    hidden_states = torch.stack([s.text(64) for _ in range(32)], dim=1)
    more = {"y": s.normal(64), "encoder_hidden_states_llama3": hidden_states}
    return s.image(16), {"c_crossattn": s.text(64)} | more


def _sd3(c: dict[str, Any], s: Sizes):
    return s.image(16, 2), {"c_crossattn": s.text(64), "y": s.normal(64)}


def _numbered(width: str):
    """Inputs of a family that is told how many tokens of the text are real; their width by its name."""
    return lambda c, s: (s.image(16), {"c_crossattn": s.text(c[width]), "num_tokens": s.tokens})


def _text(channels: int, width: int, shrink: int = 1):
    return lambda c, s: (s.image(channels, shrink), {"c_crossattn": s.text(width)})


def _one_frame(channels: int, width: int, shrink: int = 2):
    return lambda c, s: (s.image(channels, shrink)[:, :, None], {"c_crossattn": s.text(width)})


def _references(channels: int, shrink: int = 1, frame: bool = False):
    def more(c: dict[str, Any], s: Sizes):
        latent = s.image(channels, shrink)
        return {"ref_latents": [latent[:, :, None] if frame else latent]}

    return more


IMAGE_MODELS = {
    "flux1": Family(
        "flux.model:Flux",
        published("flux1"),
        TWO_BLOCKS,
        _flux,
        more={"control": _flux_control, "reference": _references(16)},
    ),
    "flux2": Family(
        "flux.model:Flux",
        published("flux2"),
        TWO_BLOCKS,
        lambda c, s: (s.image(128, 2), {"c_crossattn": s.text(c["context_in_dim"]), "guidance": s.number(3.5)}),
        more={"reference": _references(128, 2)},
    ),
    "chroma": Family(
        "chroma.model:Chroma",
        published("chroma"),
        TWO_BLOCKS | {"out_dim": 256, "hidden_dim": 128, "n_layers": 2},
        lambda c, s: (s.image(16), {"c_crossattn": s.text(c["context_in_dim"]), "guidance": s.number(0.0)}),
        more={"control": _flux_control},
    ),
    "zimage": Family(
        "lumina.model:NextDiT",
        published("zimage"),
        {"dim": 256, "n_heads": 2, "n_kv_heads": 2, "n_layers": 2, "cap_feat_dim": 64},
        _numbered("cap_feat_dim"),
    ),
    "lumina2": Family(
        "lumina.model:NextDiT",
        published("lumina2"),
        {"dim": 384, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "cap_feat_dim": 64},
        _numbered("cap_feat_dim"),
    ),
    "krea2": Family(
        "krea2.model:SingleStreamDiT",
        published("krea2"),
        {"features": 512, "layers": 2, "heads": 4, "kvheads": 1, "txtlayers": 3, "txtdim": 320},
        lambda c, s: (s.image(16), {"c_crossattn": s.text(c["txtlayers"] * c["txtdim"])}),
    ),
    "qwen_image": Family(
        "qwen_image.model:QwenImageTransformer2DModel",
        published("qwen_image"),
        {"num_layers": 2, "num_attention_heads": 2, "joint_attention_dim": 64},
        lambda c, s: (s.image(16)[:, :, None], {"c_crossattn": s.text(c.get("joint_attention_dim", 3584))}),
        more={"reference": _references(16, frame=True)},
    ),
    "mage_flow": Family(
        "mage_flow.model:MageFlowTransformer2DModel",
        published("mage_flow"),
        {"num_layers": 2, "num_attention_heads": 2},
        _text(128, 2560, 2),
    ),
    "hidream": Family(
        "hidream.model:HiDreamImageTransformer2DModel",
        published("hidream"),
        {
            "num_layers": 2,
            "num_single_layers": 2,
            "num_attention_heads": 2,
            "caption_channels": [64, 64],
            "text_emb_dim": 64,
            "llama_layers": [0, 1, 2, 3],
        },
        _hidream,
    ),
    "hunyuan_image": Family(
        "hunyuan_video.model:HunyuanVideo",
        published("hunyuan_image"),
        TWO_BLOCKS,
        lambda c, s: (s.image(64, 2), {"c_crossattn": s.text(64), "txt_byt5": s.normal(6, 1472)}),
    ),
    "pixart": Family(
        "pixart.pixartms:PixArtMS",
        published("pixart"),
        {
            "depth": 2,
            "hidden_size": 256,
            "num_heads": 4,
            "caption_channels": 64,
            "input_size": 64,
            "pe_interpolation": 1,
        },
        lambda c, s: (s.normal(4, *(4 * n for n in s.side)), {"c_crossattn": s.text(64)}),
        sigma=1.0,
    ),
    "sdxl": Family(
        "modules.diffusionmodules.openaimodel:UNetModel",
        published("sdxl"),
        {
            "model_channels": 64,
            "transformer_depth": [0, 0, 1, 1, 2, 2],
            "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
            "transformer_depth_middle": 2,
            "context_dim": 128,
            "adm_in_channels": 64,
        },
        _unet,
        sigma=1.0,
        more={"control": _unet_control},
    ),
    "sd15": Family(
        "modules.diffusionmodules.openaimodel:UNetModel",
        published("sd15"),
        {"model_channels": 64, "context_dim": 128},
        _unet,
        sigma=1.0,
        more={"control": _unet_control},
    ),
    "sd3": Family(
        "modules.diffusionmodules.mmdit:OpenAISignatureMMDITWrapper",
        published("sd3"),
        {
            "depth": 4,
            "adm_in_channels": 64,
            "num_patches": 64,
            "pos_embed_max_size": 8,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 64, "out_features": 256},
            },
        },
        _sd3,
    ),
    "auraflow": Family(
        "aura.mmdit:MMDiT",
        published("auraflow"),
        {
            "dim": 256,
            "n_heads": 2,
            "max_seq": 64,
            "cond_seq_dim": 64,
            "n_double_layers": 2,
            "n_layers": 4,
            "global_conddim": 256,
        },
        _text(4, 64),
    ),
    "anima": Family(
        "anima.model:Anima",
        published("anima"),
        {"model_channels": 256, "num_blocks": 2, "num_heads": 2, "adaln_lora_dim": 64},
        _one_frame(16, 1024),
    ),
    "ideogram4": Family(
        "ideogram4.model:Ideogram4Transformer2DModel",
        published("ideogram4"),
        {
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 128,
            "intermediate_size": 512,
            "adaln_dim": 64,
            "llm_features_dim": 128,
            "mrope_section": [24, 20, 20],
        },
        _text(128, 128, 2),
    ),
    "ernie": Family(
        "ernie.model:ErnieImageModel",
        published("ernie"),
        {"hidden_size": 256, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 512, "text_in_dim": 64},
        _text(128, 64, 2),
    ),
    "omnigen2": Family(
        "omnigen.omnigen2:OmniGen2Transformer2DModel",
        published("omnigen2"),
        {"hidden_size": 360, "num_attention_heads": 3, "num_kv_heads": 1, "num_layers": 2, "text_feat_dim": 64},
        _numbered("text_feat_dim"),
        more={"reference": _references(16)},
    ),
    "boogu": Family(
        "boogu.model:BooguTransformer2DModel",
        published("boogu"),
        {
            "num_layers": 2,
            "num_double_stream_layers": 2,
            "hidden_size": 480,
            "num_attention_heads": 4,
            "num_kv_heads": 1,
            "instruction_feat_dim": 64,
        },
        _numbered("instruction_feat_dim"),
    ),
    "lens": Family(
        "lens.model:LensTransformer2DModel",
        published("lens"),
        {"num_layers": 2, "num_attention_heads": 6, "enc_hidden_dim": 64},
        _text(128, 4 * 64, 2),
    ),
    "joyimage": Family(
        "joyimage.model:JoyImageTransformer3DModel",
        published("joyimage"),
        {"num_layers": 2, "num_attention_heads": 2, "hidden_size": 256, "text_dim": 64},
        _one_frame(16, 64),
    ),
}
