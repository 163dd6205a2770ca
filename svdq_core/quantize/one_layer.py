"""All steps for one Linear: smoothing, low-rank branch, rounding, bias.

Device and dtype: everything runs where the weight is, in float32, with a few copies of one layer at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...kernels.format import GELU_SHIFT
from ...kernels.packing import pack_nibbles
from ...kernels.reference import encode_e2m1
from ..errors import SVDQuantError
from ..layer import Part, QuantizedLayer
from ..padding import padded
from .fit import BEST_TURNS, FAST_TURNS, Fit, fit_part, overflow_error
from .gptq import FactoredHessian, choose_damping
from .grid import runtime_arithmetic
from .part_plan import LayerPlan, PartPlan
from .problem import Problem
from .round import ROWS
from .smooth import FactorFamily, activation_level
from .spec import QuantSpec
from .statistics import InputStatistics, named_generator
from .w4a16 import fit_w4a16, output_error, weight_error


@dataclass(frozen=True)
class PartReport:
    """How well one part came out.

    Args:
        layer: name of the Linear.
        rows, columns: of the part within it.
        scheme: "int4", "nvfp4", "int8" or "awq".
        rank: of its low-rank branch.
        smoothing: how the smoothing factor was made, in words.
        rounding: "nearest" or "gptq".
        relative_error: ||y_quantized - y|| / ||y|| on the tokens at hand; of the weight itself for awq without tokens.
        measured: the tokens were recorded from the model, not drawn.
    """

    layer: str
    rows: tuple[int, int]
    columns: tuple[int, int]
    scheme: str
    rank: int
    smoothing: str
    rounding: str
    relative_error: float
    measured: bool


@torch.no_grad()
def quantize_layer(
    weight: Tensor,
    bias: Tensor | None,
    plan: LayerPlan,
    spec: QuantSpec,
    name: str,
    *,
    statistics: InputStatistics | None = None,
    poll: Callable[[], None] = lambda: None,
) -> tuple[QuantizedLayer, list[PartReport]]:
    """Quantize one Linear.

    Args:
        weight: (N, K) any float dtype.
        bias: (N,) any float dtype, or None.
        plan: how it splits into parts; parts with the same columns share a smoothing factor.
        name: of the layer, for messages, the report and the random numbers.
        statistics: of the layer's input, K channels; None: standard-normal tokens are drawn ("fast" only).
        poll: called many times on the way; what it raises ends the run.

    Returns:
        The layer, on the weight's device, and one report for each part. Its bias, of spec.scale_dtype, holds the shift
        correction of every unsigned part; it is None only if there is neither a bias nor such a part.

    Raises:
        SVDQuantError: weight, bias or statistics hold NaN or infinite values, the statistics are missing or of another
            width, or a result does not fit spec.scale_dtype.
        ArchitectureError: the format cannot hold a part of this size.
    """
    out_features, in_features = weight.shape
    plan.check(out_features, in_features, name)
    for what, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            raise SVDQuantError(f"{name}: the {what} holds NaN or infinite values. Repair or re-download the model.")
    total = (
        torch.zeros(out_features, dtype=torch.float32, device=weight.device) if bias is None else bias.float().clone()
    )
    if plan.awq:
        part, report, restored = _quantize_awq(weight, plan, spec, name, statistics)
        # the input of modulation has a large mean: what that loses is no noise
        if bias is not None and statistics is not None and not plan.by_inputs:
            mean = statistics.tokens.float().mean(dim=0) if statistics.mean is None else statistics.mean
            total += (weight.float() - restored) @ mean.to(weight.device, torch.float32)
        return _finish(weight, [part], None if bias is None else total, spec, name), [report]
    statistics = _complete(statistics, plan, spec, in_features=in_features, name=name, device=weight.device)
    wide, more = weight, padded(in_features) - in_features
    if more:  # channels without input or weight, as models have some anyway
        wide, statistics = pad(weight, (0, more)), statistics.widened(in_features + more)

    parts, reports = [], []
    for columns in dict.fromkeys(p.columns for p in plan.parts):
        members = [p for p in plan.parts if p.columns == columns]
        problems = [_pose(wide, member, statistics, spec, name=name, poll=poll) for member in members]
        smooth, label = _choose_shared_factor(problems, spec)
        hessian = _factor_hessian(problems[0].statistics, smooth) if spec.method == "best" else None
        for member, problem in zip(members, problems, strict=True):
            fit = fit_part(problem, smooth, FAST_TURNS if hessian is None else BEST_TURNS, hessian)
            if problem.shift:
                rows = slice(*member.rows)
                sums = [(values / smooth).double().sum(dim=1) for values in fit.values.split(ROWS)]
                total[rows] -= problem.shift * torch.cat(sums).float()
            part = _to_part(fit, member, problem, spec)
            parts.append(part)
            reports.append(
                PartReport(
                    layer=name,
                    rows=member.rows,
                    columns=columns,
                    scheme=spec.precision,
                    rank=part.rank,
                    smoothing=label,
                    rounding="nearest" if hessian is None else "gptq",
                    relative_error=fit.error(problem),
                    measured=statistics.measured,
                )
            )
    keep_bias = bias is not None or any(p.act_unsigned for p in parts)
    return _finish(weight, parts, total if keep_bias else None, spec, name), reports


def quantize_part(
    weight: Tensor,
    bias: Tensor | None,
    spec: QuantSpec,
    name: str,
    *,
    after_gelu: bool = False,
    statistics: InputStatistics | None = None,
) -> tuple[Part, Tensor | None, PartReport]:
    """Quantize a weight that is one part by itself; arguments and errors as quantize_layer.

    Returns:
        The part, its bias with the shift correction, its report.
    """
    plan = LayerPlan.whole(weight.shape[0], weight.shape[1], after_gelu)
    layer, reports = quantize_layer(weight, bias, plan, spec, name, statistics=statistics)
    return layer.parts[0], layer.bias, reports[0]


def _complete(
    statistics: InputStatistics | None,
    plan: LayerPlan,
    spec: QuantSpec,
    *,
    in_features: int,
    name: str,
    device: torch.device,
) -> InputStatistics:
    """The statistics, checked, or synthetic ones; on the device."""
    if statistics is None:
        if spec.method == "best":
            raise SVDQuantError(
                f"{name}: method best needs recorded inputs, and the calibration holds none for this layer. "
                "Record one with this model, or choose method fast."
            )
        gelu_columns = tuple(p.columns for p in plan.parts if p.after_gelu)
        generator = named_generator(spec.seed, name + " tokens")
        return InputStatistics.synthetic(in_features, gelu_columns, spec.score_tokens, generator).to(device)
    if statistics.channels != in_features:
        raise SVDQuantError(
            f"{name}: the calibration has {statistics.channels} channels, expected {in_features}. "
            "It belongs to another model; record one with this model."
        )
    statistics = statistics.to(device)  # looking through large Hessians takes the CPU longer than moving them
    moments = (statistics.mean_square, statistics.absmax, *(() if statistics.mean is None else (statistics.mean,)))
    for tensor in (statistics.tokens, *moments, *statistics.hessians.values()):
        if not bool(torch.isfinite(tensor).all()):
            raise SVDQuantError(f"{name}: the calibration holds NaN or infinite values. Record it again.")
    return statistics


def _pose(
    weight: Tensor,
    plan: PartPlan,
    statistics: InputStatistics,
    spec: QuantSpec,
    *,
    name: str,
    poll: Callable[[], None],
) -> Problem:
    act_unsigned = plan.after_gelu and spec.precision == "int4"
    left, right = plan.columns[0], padded(plan.columns[1])
    return Problem(
        weight=weight[slice(*plan.rows), left:right].float(),
        statistics=statistics.columns(left, right),
        arithmetic=runtime_arithmetic(spec.precision, spec.activations, act_unsigned),
        shift=GELU_SHIFT if act_unsigned else 0.0,
        rank=spec.rank,
        scale_dtype=spec.scale_dtype,
        seed=spec.seed,
        name=f"{name}, rows {plan.rows}, columns {plan.columns}",
        score_tokens=spec.score_tokens,
        exact_svd=spec.exact_svd,
        poll=poll,
    )


def _choose_shared_factor(problems: list[Problem], spec: QuantSpec) -> tuple[Tensor, str]:
    statistics = problems[0].statistics
    weight = problems[0].weight if len(problems) == 1 else torch.cat([p.weight for p in problems])
    family = FactorFamily(weight, statistics, spec.scale_dtype, activation_level(statistics, spec.precision))
    return family.search(
        lambda factors: [sum(errors) for errors in zip(*(p.score_factors(factors) for p in problems), strict=True)]
    )


def _factor_hessian(statistics: InputStatistics, smooth: Tensor) -> FactoredHessian | None:
    hessian, count = statistics.hessian()
    return FactoredHessian.factor(hessian, choose_damping(count, len(smooth)), smooth)


def _to_part(fit: Fit, plan: PartPlan, problem: Problem, spec: QuantSpec) -> Part:
    units = fit.units
    if spec.precision == "int8":
        weight = {"qweight": units.to(torch.int8).contiguous(), "wscales": fit.scales.groups[:, 0].contiguous()}
    else:
        codes = encode_e2m1(units.float()) if spec.precision == "nvfp4" else units.to(torch.int8)
        weight = {"qweight": pack_nibbles(codes), "wscales": fit.scales.groups.T.contiguous()}
    tensors = weight | {
        "smooth_factor": fit.smooth.to(spec.scale_dtype),
        "proj_down": fit.proj_down.contiguous(),
        "proj_up": fit.proj_up.contiguous(),
    }
    if fit.scales.tensor is not None:
        tensors["wtscale"] = fit.scales.tensor
    return Part(spec.precision, plan.rows, plan.columns, problem.shift != 0, tensors)


def _quantize_awq(
    weight: Tensor, plan: LayerPlan, spec: QuantSpec, name: str, statistics: InputStatistics | None
) -> tuple[Part, PartReport, Tensor]:
    weight, part = weight.float(), plan.parts[0]
    seen = None
    if plan.by_inputs and statistics is not None:
        seen = _complete(statistics, plan, spec, in_features=weight.shape[1], name=name, device=weight.device)
    fit = fit_w4a16(weight, plan.group, spec.scale_dtype, seen)
    error = weight_error(fit, weight) if seen is None else output_error(fit, weight, seen)
    report = PartReport(name, part.rows, part.columns, "awq", 0, "none", fit.rounding, error, seen is not None)
    return fit.part(part), report, fit.values


def _finish(weight: Tensor, parts: list[Part], bias: Tensor | None, spec: QuantSpec, name: str) -> QuantizedLayer:
    bias = None if bias is None else bias.to(spec.scale_dtype)
    values = [t for p in parts for n, t in p.tensors.items() if t.dtype == spec.scale_dtype]
    if not all(bool(torch.isfinite(v).all()) for v in (*values, *(() if bias is None else (bias,)))):
        raise overflow_error(name, spec.scale_dtype)
    return QuantizedLayer(weight.shape[1], weight.shape[0], tuple(parts), bias)
