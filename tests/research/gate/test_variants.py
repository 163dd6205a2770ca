"""Variants of `best` do what their names say, each alone, on one small layer."""

from dataclasses import replace

import pytest
import torch

from svdquant_pack.research.evaluate.linears import SimulatedPart
from svdquant_pack.research.evaluate.other_programs import program_error
from svdquant_pack.research.gate.variants import DAMPINGS, Variant, record_split, round_four_over_six
from svdquant_pack.svdq_core.quantize.gptq import choose_damping
from svdquant_pack.svdq_core.quantize.grid import NVFP4, quantize_activations, runtime_arithmetic
from svdquant_pack.svdq_core.quantize.part_plan import PartPlan
from svdquant_pack.svdq_core.quantize.problem import Problem
from svdquant_pack.svdq_core.quantize.statistics import InputStatistics

N, K = 64, 128
PLAN = PartPlan((0, N), (0, K))


def tokens(seed, mean=0.0):
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(K, K, generator=torch.Generator().manual_seed(9)) / K**0.5
    return torch.randn(512, K, generator=g) @ mixing + mean * torch.linspace(-1, 1, K)


def problem_of(form="w4a8", mean=0.0):
    g = torch.Generator().manual_seed(1)
    arithmetic = runtime_arithmetic("nvfp4" if form == "nvfp4" else "int4", "w4a4" if form == "nvfp4" else form, False)
    statistics = InputStatistics.from_tokens(tokens(0, mean))
    return Problem(torch.randn(N, K, generator=g) / 8, statistics, arithmetic, rank=16, score_tokens=512)


def solve(variant, problem):
    return variant._solve("layer", [PLAN], [problem])


def test_nothing_changed_is_best():
    problem = problem_of()
    usual, same = (solve(v, problem)[0] for v in (Variant(), Variant(damping=choose_damping(512, K))))
    assert torch.equal(usual.values, same.values) and usual.offset is None and usual.rounding is None


def test_the_chosen_damping_has_the_least_error():
    problem = problem_of()
    chosen = program_error(solve(Variant(damping="chosen"), problem), problem, problem.tokens)
    each = [program_error(solve(Variant(damping=d), problem), problem, problem.tokens) for d in DAMPINGS]
    assert chosen in each and chosen < max(each)


def test_centring_takes_the_mean_s_error_out():
    problem = problem_of(mean=2.0)
    unseen = tokens(5, mean=2.0)

    def mean_error(part):
        lost = unseen @ problem.weight.T - replace(part, columns=(0, K)).apply(unseen)
        offset = 0 if part.offset is None else part.offset
        return float((lost - offset).mean(dim=0).norm())

    centred, usual = (solve(Variant(is_centred=c), problem)[0] for c in (True, False))
    assert centred.offset.shape == (N,)
    assert mean_error(centred) < 0.6 * mean_error(replace(centred, offset=None))
    assert mean_error(centred) < mean_error(usual)


def test_four_over_six_is_never_worse_and_often_better():
    problem = problem_of("nvfp4")
    (part,) = solve(Variant(has_four_over_six=True), problem)
    x = tokens(3)
    six, either = quantize_activations(x, NVFP4, torch.bfloat16), round_four_over_six(x, part)
    errors = [NVFP4.groups((r - x).square()).sum(dim=-1) for r in (six, either)]
    assert bool((errors[1] <= errors[0]).all()) and float((errors[1] < errors[0]).float().mean()) > 0.2
    assert isinstance(part, SimulatedPart)
    (other,) = solve(Variant(has_four_over_six=True), problem_of("w4a8"))
    assert other.rounding is None


def test_a_split_recording_needs_captions_enough():
    with pytest.raises(ValueError, match="at least 4"):
        record_split(3, torch.device("cpu"))
