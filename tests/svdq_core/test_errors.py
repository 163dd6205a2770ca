"""Errors can be printed, whatever text from outside they quote."""

import pytest

from svdquant_pack.svdq_core.errors import ArchitectureError, CheckpointError, LoraError, SVDQuantError


@pytest.mark.parametrize("kind", [SVDQuantError, ArchitectureError, CheckpointError, LoraError])
def test_half_of_a_pair_of_surrogates_is_spelled_out(kind):
    """ComfyUI's worker thread died of printing one, and every prompt behind it waited for ever."""
    error = kind("caf\udce9.safetensors: \ud800 is no name \N{SNOWMAN}")
    assert str(error) == "caf\\udce9.safetensors: \\ud800 is no name \N{SNOWMAN}"
    assert str(error).encode() and repr(error).encode()
