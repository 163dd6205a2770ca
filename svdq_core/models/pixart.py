"""PixArt-Sigma and PixArt-Alpha: host modules against checkpoint layers.

No tool has published a packed PixArt file; the names are those that nunchaku's newer models use, on diffusers'
PixArtTransformer2DModel. The keys and values of the text stay in 16 bits, as in deepcompressor's recipe.
"""

from torch import Tensor

from .architecture import Architecture, LoraNames, Published
from .layer_maps import BlockMap, LinearMap, NativeLayer

QKV = ("attn1.to_q", "attn1.to_k", "attn1.to_v")

BLOCK = BlockMap(
    host="blocks",
    source="transformer_blocks",
    linears=(
        LinearMap("attn.qkv", ("attn1.to_qkv",), shape=(3, 1)),
        LinearMap("attn.proj", ("attn1.to_out.0",)),
        LinearMap("cross_attn.q_linear", ("attn2.to_q",)),
        LinearMap("cross_attn.proj", ("attn2.to_out.0",)),
        LinearMap("mlp.fc1", ("ff.net.0.proj",), shape=(4, 1)),
        LinearMap("mlp.fc2", ("ff.net.2",), unsigned=(0,), shape=(1, 4)),
    ),
    plain={
        "cross_attn.kv_linear.weight": ("attn2.to_k.weight", "attn2.to_v.weight"),
        "cross_attn.kv_linear.bias": ("attn2.to_k.bias", "attn2.to_v.bias"),
        "scale_shift_table": ("scale_shift_table",),
    },
    plain_shapes={
        "cross_attn.kv_linear.weight": ("2H", "H"),
        "cross_attn.kv_linear.bias": ("2H",),
        "scale_shift_table": ("6", "H"),
    },
    config_key="num_layers",
    modules={"attn.qkv": (QKV, ("attn1.to_qkv",))},
    native={
        "attn1.to_qkv": NativeLayer(QKV),
        "attn1.to_out.0": NativeLayer(("attn1.to_out.0",), foldable=True),
        "attn2.to_q": NativeLayer(("attn2.to_q",)),
        "attn2.to_out.0": NativeLayer(("attn2.to_out.0",), foldable=True),
        "ff.net.0.proj": NativeLayer(("ff.net.0.proj",)),
        "ff.net.2": NativeLayer(("ff.net.2",)),
    },
)


def _metadata(plain: dict[str, Tensor], depths: dict[str, int]) -> dict:
    hidden, channels, patch, _ = plain["x_embedder.proj.weight"].shape
    diffusers = {
        "_class_name": "PixArtTransformer2DModel",
        "attention_head_dim": hidden // 16,
        "caption_channels": plain["y_embedder.y_proj.fc1.weight"].shape[1],
        "cross_attention_dim": hidden,
        "in_channels": channels,
        "norm_type": "ada_norm_single",
        "num_attention_heads": 16,
        "num_layers": depths["blocks"],
        "out_channels": 2 * channels,
        "patch_size": patch,
    }
    return {"config": diffusers, "model_class": "SVDQuantPixArtTransformer2DModel"}


PIXART = Architecture(
    name="pixart",
    title="PixArt-Sigma",
    covers="PixArt-Sigma and PixArt-Alpha",
    source_marks=("^adaln_single.", "^transformer_blocks.0.attn2."),
    host_marks=("^blocks.0.cross_attn.q_linear.", "^t_block.1."),
    metadata=_metadata,
    lora=LoraNames(marks=("adaln_single.",), called="PixArt"),
    published=(Published("pixart-sigma", 1152, {"blocks": 28}, 96_223_904, precisions=()),),
    blocks=(BLOCK,),
    modules={
        "x_embedder.proj": "pos_embed.proj",
        "t_block.1": "adaln_single.linear",
        "t_embedder.mlp.0": "adaln_single.emb.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "adaln_single.emb.timestep_embedder.linear_2",
        "csize_embedder.mlp.0": "adaln_single.emb.resolution_embedder.linear_1",
        "csize_embedder.mlp.2": "adaln_single.emb.resolution_embedder.linear_2",
        "ar_embedder.mlp.0": "adaln_single.emb.aspect_ratio_embedder.linear_1",
        "ar_embedder.mlp.2": "adaln_single.emb.aspect_ratio_embedder.linear_2",
        "y_embedder.y_proj.fc1": "caption_projection.linear_1",
        "y_embedder.y_proj.fc2": "caption_projection.linear_2",
        "final_layer.linear": "proj_out",
    },
    shapes={
        "x_embedder.proj.weight": ("H", "*", "*", "*"),
        "t_block.1.weight": ("6H", "H"),
        "t_embedder.mlp.0.weight": ("H", "256"),
        "t_embedder.mlp.2.weight": ("H", "H"),
        "csize_embedder.mlp.0.weight": ("*", "256"),
        "csize_embedder.mlp.2.weight": ("*", "*"),
        "ar_embedder.mlp.0.weight": ("*", "256"),
        "ar_embedder.mlp.2.weight": ("*", "*"),
        "y_embedder.y_proj.fc1.weight": ("H", "*"),
        "y_embedder.y_proj.fc2.weight": ("H", "H"),
        "final_layer.linear.weight": ("*", "H"),
        "final_layer.scale_shift_table": ("2", "H"),
        "y_embedder.y_embedding": ("*", "*"),
        "pos_embed": ("*", "*", "*"),
    },
    tensors={
        "final_layer.scale_shift_table": "scale_shift_table",
        "y_embedder.y_embedding": "caption_projection.y_embedding",
        "pos_embed": "pos_embed.pos_embed",
    },
    optional=frozenset(
        {"csize_embedder", "ar_embedder", "y_embedder.y_embedding", "pos_embed"}  # Alpha has the first two
    ),
)
