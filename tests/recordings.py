"""Recording in tests: the calibration nodes with small settings, and what layers see, gathered beside the pack."""

from pathlib import Path

import torch

from svdquant_pack.svdq_core.quantize.calibration_file import Calibration

SETTINGS = {"name": "mine", "take": 1, "tokens": 128, "gram_mib": 64}  # 64: more than all of the tiny FLUX take


def start(host, model, **changes):
    """A MODEL that records."""
    return host.call("SVDQuantCalibrationStart", model=model, **(SETTINGS | changes))[0]


def save(host, model):
    """The recording's file and the report."""
    samples = {"samples": torch.zeros(1, 16, 8, 8)}
    same, path, report = host.call("SVDQuantCalibrationSave", model=model, samples=samples)
    assert same is samples
    return Calibration(Path(path)), report


def linears(model):
    """Host name -> module of every Linear of the blocks, found without the pack's tables."""
    network = model.model.diffusion_model
    blocks = ("double_blocks", "single_blocks", "blocks")
    modules = {n: m for n, m in network.named_modules() if hasattr(m, "in_features") and n.split(".")[0] in blocks}
    return {n: m for n, m in modules.items() if not n.endswith("kv_linear")}  # PixArt's text stays in 16 bits


class Witness:
    """Sums of what layers see while it is open."""

    def __init__(self, model):
        self.square, self.tokens, self.outer = {}, {}, {}
        self.handles = [m.register_forward_pre_hook(self._hook(n)) for n, m in linears(model).items()]

    def _hook(self, name):
        def see(module, args):
            x = args[0].double().cpu().reshape(-1, module.in_features)
            self.square[name] = self.square.get(name, 0) + x.square().sum(dim=0)
            self.outer[name] = self.outer.get(name, 0) + x.T @ x
            self.tokens[name] = self.tokens.get(name, 0) + len(x)

        return see

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()


def hooks_left(model) -> int:
    """Hooks on any module of a MODEL."""
    return sum(len(module._forward_pre_hooks) for module in model.model.modules())
