"""GELUs computed by a neighbour, in other families: the same result, and where there is one to fold it is found."""

import comfy.ldm.wan.model
import pytest
from families.models import forward, load_quantized
from sampling import relative_error, rounding

from svdquant_pack.nodes.host.model import build
from svdquant_pack.nodes.host.model.fold import SWITCH, FoldedGELU

# Since ComfyUI 0.33 Wan's blocks compute the GELU as a function
_IN_WAN = (0, 0) if hasattr(comfy.ldm.wan.model, "WanFeedForward") else (1, 2)
# family -> how many GELUs of the tiny model are folded into the layer behind, which must not be AWQ, and into the one
# in front; single blocks have theirs in front only
FOLDED = {
    "flux1": (3, 6),
    "chroma": (0, 6),
    "hunyuan_video": (3, 6),
    "wan_t2v": _IN_WAN,
    "sd3": (4, 7),
    "pixart": (2, 2),
    "qwen_image": (0, 0),  # the GELU stands in a module of its own, with its projection
    "sdxl": (0, 0),
}


@pytest.mark.parametrize("name", FOLDED)
def test_folded_gelus_change_nothing(host, name, monkeypatch):
    monkeypatch.delenv(SWITCH, raising=False)
    counts, results = [], []
    for where in (None, "input", "output"):
        monkeypatch.setattr(build, "folds_gelu", lambda device, compute, where=where: where)
        model = load_quantized(name)
        counts.append(sum(isinstance(module, FoldedGELU) for module in model.model.modules()))
        results.append(forward(name, model))
        assert relative_error(results[-1], results[0]) < rounding(1e-6)
    assert counts == [0, *FOLDED[name]]
