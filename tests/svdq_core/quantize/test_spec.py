"""QuantSpec refuses what the format or the code cannot hold, and says what it expects."""

import pytest
import torch

from svdquant_pack.svdq_core.errors import SVDQuantError
from svdquant_pack.svdq_core.quantize import QuantSpec


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "int3"}, "Choose int4 or nvfp4 or int8"),
        ({"activations": "w4a16"}, "Choose w4a4 or w4a8"),
        ({"method": "magic"}, "method 'magic'"),
        ({"scale_dtype": torch.float32}, "Choose bfloat16 or float16"),
        ({"rank": 24}, "steps of 16"),
        ({"rank": -16}, "0 to 256"),
        ({"rank": 272}, "0 to 256"),
        ({"score_tokens": 0}, "at least 1"),
    ],
)
def test_refuses_with_a_reason(settings, message):
    with pytest.raises(SVDQuantError, match=message):
        QuantSpec(**settings)


def test_accepts_every_rank_of_the_format():
    for rank in range(0, 257, 16):
        assert QuantSpec(rank=rank).rank == rank
