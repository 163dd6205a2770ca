"""What feature tests build their graphs from: the host's own nodes, called as the executor calls them."""

import torch
from sampling import flux_conditioning
from torch import Tensor


class Graphs:
    """Short names for nodes of the host.

    Args:
        host: the in-process host; its extra nodes are loaded here.
    """

    def __init__(self, host):
        self.host = host
        # the host loads its extra nodes with the first graph
        source = {"class_type": "PrimitiveString", "inputs": {"value": "ready"}}
        host.run({"1": source, "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}})

    def __call__(self, node_id: str, **inputs):
        """The first output of a node."""
        return self.host.call(node_id, **inputs)[0]

    def sample(
        self,
        model,
        positive=None,
        negative=None,
        latent: dict | None = None,
        *,
        cfg: float = 1.0,
        steps: int = 4,
        denoise: float = 1.0,
        sampler: str = "euler",
        scheduler: str = "simple",
    ) -> Tensor:
        """KSampler's latent; by default 128 x 128 pixels of the tiny FLUX."""
        positive = positive or prompt(1)
        given = {"positive": positive, "negative": negative or positive, "latent_image": latent or empty_latent()}
        settings = {"steps": steps, "cfg": cfg, "sampler_name": sampler, "scheduler": scheduler, "denoise": denoise}
        return self("KSampler", model=model, seed=7, **given, **settings)["samples"].clone()


def prompt(seed: int, tokens: int = 16) -> list:
    """A FLUX conditioning that needs no text encoder; another seed is another prompt."""
    if seed == 1 and tokens == 16:
        return flux_conditioning()
    g = torch.Generator().manual_seed(seed)
    pooled = torch.randn(1, 64, generator=g)
    return [[torch.randn(1, tokens, 128, generator=g), {"pooled_output": pooled, "guidance": 3.5}]]


def empty_latent(height: int = 16, width: int = 16, batch: int = 1) -> dict:
    return {"samples": torch.zeros(batch, 16, height, width)}


def drawn(*shape: int, seed: int = 9) -> Tensor:
    """Seeded noise for hints, references and images."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def control_net(singles: bool = True):
    """A random FLUX ControlNet of the Union-Pro kind: latent hints, modes, residuals for double and single blocks."""
    import comfy.controlnet
    import comfy.ldm.flux.controlnet
    import comfy.ops

    network = comfy.ldm.flux.controlnet.ControlNetFlux(
        latent_input=True,
        num_union_modes=10,
        control_latent_channels=16,
        in_channels=16,
        out_channels=16,
        patch_size=2,
        vec_in_dim=64,
        context_in_dim=128,
        hidden_size=256,
        mlp_ratio=4.0,
        num_heads=2,
        depth=1,
        depth_single_blocks=int(singles),
        axes_dim=[16, 56, 56],
        theta=10000,
        qkv_bias=True,
        guidance_embed=True,
        txt_ids_dims=[],
        dtype=torch.float32,
        operations=comfy.ops.manual_cast,
    )
    g = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=g) * scale)
    device = comfy.model_management.get_torch_device()
    return comfy.controlnet.ControlNet(network, compression_ratio=1, load_device=device, extra_conds=["y", "guidance"])


class StubVAE:
    """Stands for an autoencoder: its latent of an image is the image's own mean colour, repeated."""

    def encode(self, pixels: Tensor) -> Tensor:
        small = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
        return small.repeat(1, 6, 1, 1)[:, :16]


class StubStyleModel:
    """Stands for Redux: tokens that are appended to the prompt's."""

    def get_cond(self, output: Tensor) -> Tensor:
        return output
