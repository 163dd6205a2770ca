"""Families that have no description: named where a file is refused, or read under ComfyUI's names as they are.

A mark is a piece of a name; one that begins with "^" stands at its beginning. A family is told by all marks of one of
its entries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .architecture import Architecture

Marks = tuple[str, ...]


@dataclass(frozen=True)
class Other:
    """A family by name.

    Args:
        title: for messages.
        host, source: entries of marks, in ComfyUI's names and in diffusers'.
        resembles: has names of a described family, too, and is asked for before those.
        lora: pieces of names that its LoRAs have and no other family's; as LoraNames.marks.
    """

    title: str
    host: tuple[Marks, ...] = ()
    source: tuple[Marks, ...] = ()
    resembles: bool = False
    lora: Marks = ()


# the more special before those that they resemble
OTHERS = (
    Other("SANA", source=(("inverted_conv",),), resembles=True),
    Other("Chroma Radiance", host=(("^nerf_image_embedder.",), ("^nerf_final_layer_conv.",)), resembles=True),
    Other(
        "HunyuanVideo or HunyuanImage",
        host=(("^txt_in.individual_token_refiner.",),),
        source=(("^context_embedder.token_refiner.",),),
        resembles=True,
    ),
    Other("JoyImage", host=(("^double_blocks.0.attn.img_attn_qkv.",),), resembles=True),
    Other("Lens", host=(("^transformer_blocks.0.attn.img_qkv.",),), resembles=True),
    Other(
        "Qwen-Image 2.1",
        host=((".img_mlp.gate_up.",), (".img_mlp.gate_layer.",)),
        source=((".img_mlp.gate_up.",), (".img_mlp.gate_layer.",)),
        resembles=True,
    ),
    Other("LTX-Video 2", host=(("^audio_adaln_single.",),), source=((".audio_attn1.",),), resembles=True),
    Other(
        "LTX-Video",
        host=(("^patchify_proj.",),),
        source=(("^proj_in.", "^transformer_blocks.0.attn2."),),
        resembles=True,
    ),
    Other(
        "Stable Diffusion 3",
        host=(("^joint_blocks.",),),
        source=(("^pos_embed.proj.", ".norm1_context."),),
        resembles=True,
        lora=("joint_blocks.",),
    ),
    Other("Stable Audio", host=(("^transformer.rotary_pos_emb.",),), resembles=True),
    Other("HunyuanDiT", host=(("^mlp_t5.0.",),), resembles=True),
    Other("Hunyuan3D", host=(("^latent_in.",), ("^t_embedder.mlp.2.", "^blocks.0.attn1.k_norm.")), resembles=True),
    Other("ACE-Step", host=(("^genre_embedder.",), ("^decoder.layers.0.", "^encoder.lyric_encoder.")), resembles=True),
    Other("SeedVR2", host=((".mlp.all.proj_in",), (".mlp.vid.proj_out.",)), resembles=True),
    Other("HiDream-O1", host=(("^t_embedder1.mlp.0.", "^x_embedder.proj1."),), resembles=True),
    Other("PixelDiT or PiD", host=(("^core.pixel_embedder.",), ("^lq_proj.",)), resembles=True),
    Other("Z-Image in pixels", host=(("^dec_net.cond_embed.",),), resembles=True),
    Other("TripoSplat", host=(("^cam_out_layer.", "^repo_layers.0."),), resembles=True),
    Other("Cosmos 1", host=(("^blocks.block0.blocks.0.",),), resembles=True),
    Other("Stable Cascade", host=(("^clf.1.",),), resembles=True),
    Other("Mochi", host=(("^t5_y_embedder.",),), source=((".norm1_context.linear_1.",),), resembles=True),
    Other("AuraFlow", host=(("^double_layers.",),), source=(("^joint_transformer_blocks.",),)),
    Other("HiDream", host=(("^double_stream_blocks.",),), source=(("^double_stream_blocks.",),)),
    Other(
        "Wan",
        host=((".self_attn.norm_q.", ".ffn.0."),),
        source=(("^condition_embedder.", ".attn1."),),
        lora=(".cross_attn.k_img", "blocks.0.ffn.0."),
    ),
    Other(
        "Cosmos or Anima",
        host=((".adaln_modulation_self_attn.",),),
        source=(("^transformer_blocks.0.norm1.linear_1.",),),
    ),
    Other("Kandinsky 5", host=(("^visual_transformer_blocks.",),), source=(("^visual_transformer_blocks.",),)),
    Other(
        "CogVideoX",
        host=(("^blocks.0.norm1.linear.",),),
        source=(("^transformer_blocks.0.norm1.linear.", "^patch_embed.proj."),),
    ),
    Other("Boogu", host=(("^double_stream_layers.",),), source=(("^double_stream_layers.",),)),
    Other("OmniGen 2", host=(("^image_index_embedding",),), source=(("^image_index_embedding",),)),
    Other("Ideogram 4", host=(("^embed_image_indicator.",),), source=(("^embed_image_indicator.",),)),
    Other("Lumina 2", host=(("^cap_embedder.", "^noise_refiner."),), source=((".feed_forward.linear_1.",),)),
    Other("Stable Diffusion 1 or 2", host=(("^input_blocks.",),), source=()),
)


def other_family(names: Sequence[str], side: str, before: bool) -> str:
    """The title of a family without a description, or "".

    Args:
        names: of a checkpoint. side: "host" or "source", whose names they are.
        before: ask for those that resemble described families, or else for the rest.
    """
    for other in OTHERS:
        if other.resembles == before:
            # some writers call layers as ComfyUI does
            for marks in other.host if side == "host" else (*other.source, *other.host):
                if all(occurs(mark, names) for mark in marks):
                    return other.title
    return ""


def occurs(mark: str, names: Sequence[str]) -> bool:
    """Whether a mark is in any of the names; of several, joined by " & ", each of them in some."""
    if " & " in mark:
        return all(occurs(part, names) for part in mark.split(" & "))
    if mark.startswith("^"):
        return any(name.startswith(mark[1:]) for name in names)
    return any(mark in name for name in names)


def generic_family(title: str) -> Architecture:
    """A family whose files are read under ComfyUI's names as they are: no table says what belongs to it."""
    return Architecture(name="generic", title=title or "unknown", blocks=())
