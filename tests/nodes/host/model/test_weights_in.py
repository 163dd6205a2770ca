"""The state dict that the host gets: placeholders, and dense weights where the host reads them itself."""

import torch
from families.models import random_part

from svdquant_pack.nodes.host.model.placeholder import packed_of
from svdquant_pack.nodes.host.model.weights_in import to_state_dict
from svdquant_pack.svdq_core.apply_layer import dense_weight
from svdquant_pack.svdq_core.layer import QuantizedLayer
from svdquant_pack.svdq_core.models import FLUX
from svdquant_pack.svdq_core.quantized_model import QuantizedModel

CPU = torch.device("cpu")


def model(dtype: torch.dtype = torch.bfloat16) -> QuantizedModel:
    names = ("blocks.0.q", "patch_embed.text_proj", "img_in")
    layers = {n: QuantizedLayer(64, 32, (random_part("int4", (0, 32), (0, 64), n, n),)) for n in names}
    return QuantizedModel(FLUX, layers, {"norm.weight": torch.ones(100_000, dtype=dtype)})


def test_layers_are_packed_and_what_the_host_reads_is_dense():
    expected = {name: dense_weight(layer) for name, layer in model().layers.items()}
    given = model()
    state = to_state_dict(given, "w4a16", CPU)
    assert not given.layers and set(state) == {f"{n}.weight" for n in (*expected, "norm")}
    assert packed_of(state["blocks.0.q.weight"]) is not None
    for name in ("patch_embed.text_proj", "img_in"):
        assert packed_of(state[f"{name}.weight"]) is None
        assert torch.equal(state[f"{name}.weight"], expected[name].bfloat16())


def test_placeholders_have_the_files_16_bit_dtype():
    for dtype in (torch.float16, torch.bfloat16):
        assert model(dtype).half_dtype == dtype
        assert to_state_dict(model(dtype), "w4a16", CPU)["blocks.0.q.weight"].dtype == dtype
    assert QuantizedModel(FLUX, {}, {"x": torch.ones(2)}).half_dtype == torch.bfloat16
