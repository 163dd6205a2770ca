"""What patches need on a layer, before anything is made of them."""

import torch
from comfy.weight_adapter import LoRAAdapter

from svdquant_pack.nodes.host.lora.plan import plan_lora


def lora_patch(up, down, start) -> tuple:
    return 1.0, LoRAAdapter(set(), (up, down, None, None, None, None)), 1.0, (0, start, up.shape[0]), None


def test_a_shared_down_projection_costs_its_rank_once():
    """As where a tool has split a LoRA on a fused q, k, v."""
    down, ups = torch.randn(4, 256), [torch.randn(256, 4) for _ in range(3)]
    plan = plan_lora([lora_patch(up, down.clone(), 256 * i) for i, up in enumerate(ups)])
    assert len(plan.blocks) == 1 and plan.rank == 16
    plan = plan_lora([lora_patch(up, torch.randn(4, 256), 256 * i) for i, up in enumerate(ups)])
    assert len(plan.blocks) == 3


def test_no_patches_are_no_plan():
    assert plan_lora([]) is None
    tensor = torch.ones(2, 2)
    assert plan_lora([(0.5, (tensor,), 1.0, None, None), (-0.5, (tensor,), 1.0, None, None)]) is None


def test_a_lora_of_rank_0_is_nothing_whatever_its_alpha():
    value = LoRAAdapter(set(), (torch.zeros(256, 0), torch.zeros(0, 128), 4.0, None, None, None))
    plan = plan_lora([(1.0, value, 1.0, None, None)])
    assert plan.rank == 0 and not plan.reads_input and plan.nbytes(128, 256, 2) == 0


def test_a_scaled_weight_takes_no_memory_but_for_its_bias():
    plan = plan_lora([(0.0, (None,), 0.9, None, None)])
    assert plan.scale == 0.9 and not plan.dense and plan.nbytes(128, 256, 2) == 4 * 256
