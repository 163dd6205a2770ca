"""The tiny checkpoints of tests/data, and what their layers are called in the host."""

from pathlib import Path

DATA = Path(__file__).parent / "data"

# nunchaku layer -> (host module, index of its part)
HOST_NAMES = {
    "transformer_blocks.0.qkv_proj": ("double_blocks.0.img_attn.qkv", 0),
    "transformer_blocks.0.qkv_proj_context": ("double_blocks.0.txt_attn.qkv", 0),
    "transformer_blocks.0.out_proj": ("double_blocks.0.img_attn.proj", 0),
    "transformer_blocks.0.out_proj_context": ("double_blocks.0.txt_attn.proj", 0),
    "transformer_blocks.0.mlp_fc1": ("double_blocks.0.img_mlp.0", 0),
    "transformer_blocks.0.mlp_fc2": ("double_blocks.0.img_mlp.2", 0),
    "transformer_blocks.0.mlp_context_fc1": ("double_blocks.0.txt_mlp.0", 0),
    "transformer_blocks.0.mlp_context_fc2": ("double_blocks.0.txt_mlp.2", 0),
    "transformer_blocks.0.norm1.linear": ("double_blocks.0.img_mod.lin", 0),
    "transformer_blocks.0.norm1_context.linear": ("double_blocks.0.txt_mod.lin", 0),
    "single_transformer_blocks.0.qkv_proj": ("single_blocks.0.linear1", 0),
    "single_transformer_blocks.0.mlp_fc1": ("single_blocks.0.linear1", 1),
    "single_transformer_blocks.0.out_proj": ("single_blocks.0.linear2", 0),
    "single_transformer_blocks.0.mlp_fc2": ("single_blocks.0.linear2", 1),
    "single_transformer_blocks.0.norm.linear": ("single_blocks.0.modulation.lin", 0),
}
