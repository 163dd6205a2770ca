"""What deepcompressor calls the layers in its own output, by the names of our tables.

model.pt holds diffusers' modules; scale.pt, smooth.pt and branch.pt are keyed by one of the modules that share a
quantity. A module whose activations are shifted is wrapped and has `.linear` behind its name.
"""

from dataclasses import dataclass

WRAPPED = ".linear"


@dataclass(frozen=True)
class NativeLayer:
    """One layer.

    Args:
        modules: the diffusers modules whose rows it stacks.
        smooth: the module under which its smoothing factors are kept; "" if that is modules[0].
        branch: likewise for its low-rank branch.
        foldable: the smoothing may have been folded into the layer before, as `proj.fuse_when_possible` tells.
    """

    modules: tuple[str, ...]
    smooth: str = ""
    branch: str = ""
    foldable: bool = False


_ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v")
_ADDED = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")

# architecture -> block prefix in the file -> layer of our tables
NATIVE_LAYERS = {
    "flux": {
        "transformer_blocks": {
            "norm1.linear": NativeLayer(("norm1.linear",)),
            "norm1_context.linear": NativeLayer(("norm1_context.linear",)),
            "qkv_proj": NativeLayer(_ATTENTION),
            "qkv_proj_context": NativeLayer(_ADDED, smooth="attn.add_k_proj", branch="attn.add_k_proj"),
            "out_proj": NativeLayer(("attn.to_out.0",), foldable=True),
            "out_proj_context": NativeLayer(("attn.to_add_out",), smooth="attn.to_out.0", foldable=True),
            "mlp_fc1": NativeLayer(("ff.net.0.proj",)),
            "mlp_fc2": NativeLayer(("ff.net.2",)),
            "mlp_context_fc1": NativeLayer(("ff_context.net.0.proj",)),
            "mlp_context_fc2": NativeLayer(("ff_context.net.2",)),
        },
        "single_transformer_blocks": {
            "norm.linear": NativeLayer(("norm.linear",)),
            "qkv_proj": NativeLayer(_ATTENTION),
            "mlp_fc1": NativeLayer(("proj_mlp",), smooth="attn.to_q"),
            "out_proj": NativeLayer(("proj_out.linears.0",), foldable=True),
            "mlp_fc2": NativeLayer(("proj_out.linears.1",)),
        },
    },
    "pixart": {
        "transformer_blocks": {
            "attn1.to_qkv": NativeLayer(("attn1.to_q", "attn1.to_k", "attn1.to_v")),
            "attn1.to_out.0": NativeLayer(("attn1.to_out.0",), foldable=True),
            "attn2.to_q": NativeLayer(("attn2.to_q",)),
            "attn2.to_out.0": NativeLayer(("attn2.to_out.0",), foldable=True),
            "ff.net.0.proj": NativeLayer(("ff.net.0.proj",)),
            "ff.net.2": NativeLayer(("ff.net.2",)),
        }
    },
}
FOLDED_FLAG = "smooth.pt/proj.fuse_when_possible"  # true where it is absent
