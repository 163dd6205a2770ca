"""Atom and ViDiT-Q: exact where nothing is rounded, and what each is for helps."""

import torch

from svdquant_pack.research.baselines import held_out_error, with_bits
from svdquant_pack.research.evaluate import other_programs
from svdquant_pack.research.evaluate.other_programs import PROGRAMS, atom, program_error, vidit_q
from svdquant_pack.svdq_core.quantize.grid import INT8, runtime_arithmetic
from svdquant_pack.svdq_core.quantize.part_plan import PartPlan
from svdquant_pack.svdq_core.quantize.problem import Problem
from svdquant_pack.svdq_core.quantize.statistics import InputStatistics

N, K = 96, 320
PLAN = PartPlan((0, N), (0, K))


def tokens(seed):
    x = torch.randn(512, K, generator=torch.Generator().manual_seed(seed))
    x[:, [3, 50, 100, 200]] *= 30
    return x


def problem_of(activations="w4a4"):
    weight = torch.randn(N, K, generator=torch.Generator().manual_seed(1)) / 16
    arithmetic = runtime_arithmetic("int4", activations, False)
    return Problem(weight, InputStatistics.from_tokens(tokens(0)), arithmetic, rank=0, score_tokens=512)


def test_atom_keeps_the_outliers_at_eight_bits():
    problem, unseen = problem_of(), tokens(7)
    parts = atom(problem, PLAN)
    assert [part.values.shape[1] for part in parts] == [384, 16]  # 304 filled up to whole groups, and 16
    kept = parts[1].see(torch.arange(K).float()[None])[0]
    assert {3.0, 50.0, 100.0, 200.0} <= set(kept.tolist())
    ordinary = parts[0].see(torch.arange(1, K + 1).float()[None])[0]
    assert sorted([*ordinary[ordinary > 0].tolist(), *(kept + 1).tolist()]) == list(range(1, K + 1))
    assert program_error(parts, problem, unseen) < 0.6 * held_out_error("nearest", problem, unseen)


def test_vidit_q_is_exact_but_for_rounding_and_balances_channels(monkeypatch):
    problem, unseen = problem_of("w4a8"), tokens(7)
    eight = with_bits(problem, 8, 8)
    errors = {name: program_error(vidit_q(p, PLAN), p, unseen) for name, p in (("4", problem), ("8", eight))}
    assert errors["8"] < 0.02 < errors["4"]
    (part,) = vidit_q(problem, PLAN)
    assert part.activations == INT8
    units = part.values / part.values.abs().amax(dim=1, keepdim=True) * 7  # one scale for an output channel
    assert float((units - units.round()).abs().max()) < 1e-4
    monkeypatch.setattr(other_programs, "rotate", lambda x: x.float())
    assert errors["4"] < program_error(vidit_q(problem, PLAN), problem, unseen)


def test_all_programs_give_parts_of_their_plan():
    for program in PROGRAMS.values():
        assert {part.rows for part in program(problem_of("w4a8"), PLAN)} == {(0, N)}
