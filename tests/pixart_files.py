"""A 16-bit PixArt of one block, under the host's names and under those of diffusers."""

import torch


def pixart(width: int = 128) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A PixArt of one block: the host's names, diffusers' names."""
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g).bfloat16()

    host, theirs = {}, {}
    pieces = {"attn.qkv": ["attn1.to_q", "attn1.to_k", "attn1.to_v"], "attn.proj": ["attn1.to_out.0"]}
    pieces |= {"cross_attn.q_linear": ["attn2.to_q"], "cross_attn.kv_linear": ["attn2.to_k", "attn2.to_v"]}
    pieces |= {"cross_attn.proj": ["attn2.to_out.0"], "mlp.fc1": ["ff.net.0.proj"], "mlp.fc2": ["ff.net.2"]}
    for ours, names in pieces.items():
        rows, columns = (4 if "fc1" in ours else 1) * width, (4 if "fc2" in ours else 1) * width
        for end, shape in (("weight", (rows, columns)), ("bias", (rows,))):
            drawn = [draw(*shape) for _ in names]
            host[f"blocks.0.{ours}.{end}"] = torch.cat(drawn)
            theirs |= {f"transformer_blocks.0.{n}.{end}": t for n, t in zip(names, drawn, strict=True)}
    outside = {
        "x_embedder.proj": ("pos_embed.proj", (width, 4, 2, 2)),
        "t_block.1": ("adaln_single.linear", (6 * width, width)),
        "t_embedder.mlp.0": ("adaln_single.emb.timestep_embedder.linear_1", (width, 256)),
        "t_embedder.mlp.2": ("adaln_single.emb.timestep_embedder.linear_2", (width, width)),
        "y_embedder.y_proj.fc1": ("caption_projection.linear_1", (width, 64)),
        "y_embedder.y_proj.fc2": ("caption_projection.linear_2", (width, width)),
        "final_layer.linear": ("proj_out", (32, width)),
    }
    for ours, (name, shape) in outside.items():
        host[f"{ours}.weight"] = theirs[f"{name}.weight"] = draw(*shape)
        host[f"{ours}.bias"] = theirs[f"{name}.bias"] = draw(shape[0])
    host["blocks.0.scale_shift_table"] = theirs["transformer_blocks.0.scale_shift_table"] = draw(6, width)
    host["final_layer.scale_shift_table"] = theirs["scale_shift_table"] = draw(2, width)
    return host, theirs
