"""The bare network of the tiny FLUX on fixed inputs, for states that sampling would leave at once."""

import torch
from sampling import flux_conditioning
from torch import Tensor


class NetworkRun:
    """Calls the network of a MODEL as it lies in memory now."""

    def __init__(self, model):
        text, extra = flux_conditioning()[0]
        latent = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(3))
        inputs = [latent, torch.tensor([0.7]), text, extra["pooled_output"], torch.tensor([3.5])]
        self.network = model.model.diffusion_model
        self.inputs = [t.to(model.load_device, model.model.get_dtype_inference()) for t in inputs]

    def __call__(self) -> Tensor:
        x, time, text, pooled, guidance = self.inputs
        with torch.inference_mode():
            return self.network(x, time, text, y=pooled, guidance=guidance).clone()
