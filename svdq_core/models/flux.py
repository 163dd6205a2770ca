"""FLUX.1 (dev, schnell, Krea, Kontext, Fill, Canny, Depth): host modules against nunchaku checkpoint layers.

Source: the names of deepcompressor's converter and of diffusers' FluxTransformer2DModel; ComfyUI's comfy/ldm/flux.
"""

from .architecture import Architecture, BlockMap, LinearMap


def _stream(host: str, suffix: str, modulation: str) -> tuple[LinearMap, ...]:
    """The layers of the image or of the text stream of a double block."""
    return (
        LinearMap(f"{host}_mod.lin", (modulation,), modulation_chunks=6, shape=(6, 1)),
        LinearMap(f"{host}_attn.qkv", (f"qkv_proj{suffix}",), shape=(3, 1)),
        LinearMap(f"{host}_attn.proj", (f"out_proj{suffix}",)),
        LinearMap(f"{host}_mlp.0", (f"mlp{suffix}_fc1",), shape=(4, 1)),
        LinearMap(f"{host}_mlp.2", (f"mlp{suffix}_fc2",), unsigned=(0,), shape=(1, 4)),
    )


DOUBLE_BLOCK = BlockMap(
    host="double_blocks",
    source="transformer_blocks",
    linears=_stream("img", "", "norm1.linear") + _stream("txt", "_context", "norm1_context.linear"),
    plain={
        "img_attn.norm.query_norm.weight": ("norm_q.weight",),
        "img_attn.norm.key_norm.weight": ("norm_k.weight",),
        "txt_attn.norm.query_norm.weight": ("norm_added_q.weight",),
        "txt_attn.norm.key_norm.weight": ("norm_added_k.weight",),
    },
    plain_shapes={
        f"{stream}_attn.norm.{name}_norm.weight": ("*",) for stream in ("img", "txt") for name in ("query", "key")
    },
    config_key="num_layers",
)

SINGLE_BLOCK = BlockMap(
    host="single_blocks",
    source="single_transformer_blocks",
    linears=(
        LinearMap("modulation.lin", ("norm.linear",), modulation_chunks=3, shape=(3, 1)),
        LinearMap("linear1", ("qkv_proj", "mlp_fc1"), split=lambda n, k: (3 * k, n - 3 * k), shape=(7, 1)),
        LinearMap(
            "linear2", ("out_proj", "mlp_fc2"), "columns", unsigned=(1,), split=lambda n, k: (n, k - n), shape=(1, 5)
        ),
    ),
    plain={"norm.query_norm.weight": ("norm_q.weight",), "norm.key_norm.weight": ("norm_k.weight",)},
    plain_shapes={"norm.query_norm.weight": ("*",), "norm.key_norm.weight": ("*",)},
    config_key="num_single_layers",
)

FLUX = Architecture(
    name="flux",
    title="FLUX.1",
    blocks=(DOUBLE_BLOCK, SINGLE_BLOCK),
    modules={
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
        "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
        "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
        "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
        "final_layer.adaLN_modulation.1": "norm_out.linear",
        "final_layer.linear": "proj_out",
    },
    optional=frozenset({"guidance_in"}),  # schnell has none
    swapped_halves=frozenset({"final_layer.adaLN_modulation.1"}),
    shapes={
        "img_in.weight": ("H", "*"),
        "txt_in.weight": ("H", "*"),
        "time_in.in_layer.weight": ("H", "256"),
        "time_in.out_layer.weight": ("H", "H"),
        "guidance_in.in_layer.weight": ("H", "256"),
        "guidance_in.out_layer.weight": ("H", "H"),
        "vector_in.in_layer.weight": ("H", "*"),
        "vector_in.out_layer.weight": ("H", "H"),
        "final_layer.adaLN_modulation.1.weight": ("2H", "H"),
        "final_layer.linear.weight": ("*", "H"),
    },
    older_tensors={"_norm.weight": "_norm.scale"},
    newer_names={
        "transformer_blocks": {
            "qkv_proj": "attn.to_qkv",
            "qkv_proj_context": "attn.add_qkv_proj",
            "out_proj": "attn.to_out.0",
            "out_proj_context": "attn.to_add_out",
            "mlp_fc1": "ff.net.0.proj",
            "mlp_fc2": "ff.net.2",
            "mlp_context_fc1": "ff_context.net.0.proj",
            "mlp_context_fc2": "ff_context.net.2",
            "norm_q.weight": "attn.norm_q.weight",
            "norm_k.weight": "attn.norm_k.weight",
            "norm_added_q.weight": "attn.norm_added_q.weight",
            "norm_added_k.weight": "attn.norm_added_k.weight",
        },
        "single_transformer_blocks": {
            "qkv_proj": "attn.to_qkv",
            "out_proj": "attn.to_out",
            "norm_q.weight": "attn.norm_q.weight",
            "norm_k.weight": "attn.norm_k.weight",
        },
    },
)
