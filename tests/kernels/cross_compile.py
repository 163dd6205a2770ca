"""Compiles every kernel for one GPU generation, without that GPU, and prints what came out as JSON.

    PYTHONPATH=tests:tools python tests/kernels/cross_compile.py sm_89 [--own]

--own leaves out what another GPU compiles for it (compile_plan.py). With another Triton in front on PYTHONPATH it tells
what that version compiles; "missing" is what it has no language for.

A program and not a fixture, because the interpreter that the other tests use must not be on when Triton is imported.
"""

import itertools
import json
import sys
from functools import partial
from importlib import import_module

import compile_plan
import triton
from compile_reports import amd_report, nvidia_report
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from svdquant_pack.kernels.gpus import GENERATIONS, Generation
from svdquant_pack.kernels.paths.layer_paths import NATIVE_FP4
from svdquant_pack.kernels.quantizer import quantize_basis, quantize_scales
from svdquant_pack.kernels.quantizer.quantize_weight import CHANNELS, MOST_COLUMNS, WARPS
from svdquant_pack.kernels.step import gemm_w4a8_by_torch as by_torch
from svdquant_pack.kernels.step import norm
from svdquant_pack.kernels.tiles import (
    Projection,
    choose_projection,
    fuses_rank,
    gemm_tile,
    gemv_tile,
    native_int4_tile,
    quantizer_tile,
    shares_tile,
    unpack_tile,
)

KERNELS = "svdquant_pack.kernels"
QUANTIZER = ("quantize_basis", "quantize_scales", "quantize_weight")  # every other kernel runs in each step
M, N, K, R = 4608, 3072, 3072, 32
LONG_K = 12288
STRIDES = tuple(f"stride_{which}" for which in ("xm", "cm", "ag", "dm", "om", "ld", "lu"))
SIZES = dict.fromkeys(("M", "N", "K", "R", "L", "TOTAL", "rows", "gelu_from", *STRIDES), "i32")
ODD = ("M", "L", "H", "stride_ag")  # the only sizes that need not be multiples of 16
HALF = "*bf16"
W4A8, BY_TORCH = "gemm_w4a8", "gemm_w4a8_by_torch"
# compiled as they are launched: products and sums rounded one by one
UNFUSED = ("project_act", "quantize_act", "quantize_act_int8", "quantize_scales", "quantize_weight", "unpack_weight")
UNFUSED += ("requantize_weight",)


def row_of(name: str) -> Generation:
    """The row of the table of GPUs that a name stands for."""
    return next(row for row in GENERATIONS if row.name == name)


def _flags(gpu: Generation) -> dict:
    return {"PTX": gpu.target.backend == "cuda", "GELU": True, "SHIFT": 0.171875}


def _quantizer(gpu: Generation) -> dict:
    rank = R if fuses_rank(R, gpu) else 0
    return {**_flags(gpu), "HAS_RANK": rank > 0, **quantizer_tile(K, rank)}


def _groups(gpu: Generation, output: str, scheme: str = "int4") -> tuple:
    pointers = {
        "x_ptr": HALF,
        "smooth_ptr": HALF,
        "proj_down_ptr": HALF,
        "codes_ptr": {"float": HALF, "fragments": "*i32"}.get(output, "*i8"),
        "ascales_ptr": "*u8" if scheme == "nvfp4" else HALF,
        "x_down_ptr": HALF,
    }
    constants = {"SCHEME": scheme, "OUTPUT": output, "GROUP_SIZE": 64 if scheme == "int4" else 16, "CODE_MAX": 7.0}
    return "quantize_act", "_quantize_groups_kernel", pointers, {**constants, **_quantizer(gpu)}


def _tokens(gpu: Generation) -> tuple:
    pointers = {
        **dict.fromkeys(("x_ptr", "smooth_ptr", "proj_down_ptr", "x_down_ptr", "wscales_ptr"), HALF),
        "wtscale_ptr": "*fp32",
        "wcscales_ptr": HALF,
        **dict.fromkeys(("ascales_ptr", "sums_ptr", "channel_scales_ptr"), "*fp32"),
        **dict.fromkeys(("codes_ptr", "weight_codes_ptr"), "*i8"),
        "qweight_ptr": "*i32",
    }
    weight = unpack_tile("requantize", N, K)
    overlap = {"OVERLAP": gpu.overlaps_launches}
    constants = {
        **_quantizer(gpu),
        **overlap,
        "SHARES": 0,
        "HAS_CHANNEL_SCALES": True,
        "SCHEME": "int4",
        "GROUP_SIZE": 64,
    }
    constants |= {"WEIGHT_BLOCK_N": weight["BLOCK_N"], "WEIGHT_BLOCK_K": weight["BLOCK_K"]}
    if choose_projection(LONG_K, R, gpu) is Projection.SHARED:
        constants |= {"SHARES": shares_tile(M, LONG_K, R)["SHARES"], "BLOCK_R": R}
    return "quantize_act_int8", "_quantize_tokens_kernel", pointers, constants


def _joined_factors() -> tuple:
    names = ("proj_down_ptr", "lora_down_ptr", "down_ptr", "proj_up_ptr", "lora_up_ptr", "up_ptr")
    return "join_factors", "_join_kernel", dict.fromkeys(names, HALF), {"BLOCK": 64, "WIDTH": 64, "num_warps": 4}


def _gelu(gpu: Generation) -> tuple:
    pointers = {"x_ptr": HALF, "out_ptr": HALF}
    return "gelu", "_gelu_kernel", pointers, {"PTX": _flags(gpu)["PTX"], "BLOCK_K": 2048, "num_warps": 4}


def _norms() -> dict:
    pointers = dict.fromkeys(("x_ptr", "weight_ptr", "out_ptr"), HALF)
    sizes = {**pointers, **dict.fromkeys(("H", "stride_xb", "stride_xh", "stride_xl"), "i32")}
    heads = {"EPS": 1e-6, "D": 128, "BLOCK_L": norm.TOKENS, "BLOCK_H": norm.HEADS, "num_warps": 4}
    rows = {"EPS": 1e-6, "BLOCK_K": 4096, "num_warps": 4}
    return {
        "norm of heads": ("norm", "_rms_norm_kernel", sizes, heads),
        "norm of rows": ("norm", "_layer_norm_kernel", pointers, rows),
    }


def _projection(gpu: Generation) -> tuple:
    pointers = dict.fromkeys(("x_ptr", "smooth_ptr", "proj_down_ptr"), HALF) | {"sums_ptr": "*fp32"}
    return "project_act", "project_kernel", pointers, {**_flags(gpu), "GELU": False, **shares_tile(M, LONG_K, R)}


def _weight(kernel: str, op: str, scheme: str, pointers: dict, **constants) -> tuple:
    group_size = {"SCHEME": scheme, "GROUP_SIZE": 16 if scheme == "nvfp4" else 64}
    scales = {"wscales_ptr": "*u8" if scheme == "nvfp4" else HALF, "wzeros_ptr": HALF}
    scales |= {"wtscale_ptr": "*fp32", "wcscales_ptr": HALF}
    module = {"gemv": "gemv_w4a16", "requantize": "requantize_weight"}.get(op, "unpack_weight")
    tile = gemv_tile(constants["BLOCK_M"], K) if op == "gemv" else unpack_tile(op, N, K)
    return (
        module,
        kernel,
        {"qweight_ptr": "*i32", **scales, **pointers},
        {**group_size, **tile, **constants},
    )


def _gemm(op: str, gpu: Generation, pointers: dict, **constants) -> tuple:
    epilogue = {"x_down_ptr": HALF, "proj_up_ptr": HALF, "bias_ptr": HALF, "out_ptr": HALF}
    tile = by_torch.TILE if op == BY_TORCH else gemm_tile(op, M, K, gpu)
    constants = {"HAS_BIAS": True, "HAS_RANK": True, **tile, **constants}
    return op, f"_{op}_kernel", {**pointers, **epilogue}, constants


def _cases(gpu: Generation) -> dict:
    """name -> module, kernel, pointer types, constants and options; or a function that says so."""
    int8 = {"qx_ptr": "*i8", "qweight_ptr": "*i8"}
    requantized = {"codes_ptr": "*i8", "channel_scales_ptr": "*fp32"}
    gemv = dict.fromkeys(("x_ptr", "smooth_ptr", "x_down_ptr", "proj_up_ptr", "bias_ptr", "out_ptr"), HALF)
    flags = {"PTX": gpu.target.backend == "cuda", "SHIFT": 0.0, "HAS_RANK": True, "HAS_BIAS": True, "BLOCK_R": 16}
    cases = {
        "quantize_act packed": _groups(gpu, "packed"),
        **{f"quantize_act {output}": _groups(gpu, output) for output in ("int8", "fragments")},
        "quantize_act float": _groups(gpu, "float"),
        "quantize_act nvfp4": _groups(gpu, "packed", "nvfp4"),
        "quantize_act_int8": _tokens(gpu),
        "join_factors": _joined_factors(),
        "gelu": _gelu(gpu),
        **_norms(),
        "requantize_weight": _weight("_requantize_kernel", "requantize", "int4", requantized, HAS_CHANNEL_SCALES=False),
        "dequantize_weight": _weight(
            "_dequantize_kernel", "dequantize", "nvfp4", {"proj_up_ptr": HALF, "out_ptr": HALF}
        ),
    }
    for scheme, rows in (("awq", 1), ("awq", 4), ("int4", 1), ("int4", 4), ("nvfp4", 1), ("nvfp4", 4)):
        constants = {"BLOCK_M": rows, "HAS_SMOOTH": scheme != "awq", **flags}
        cases[f"gemv_w4a16 {scheme} {rows}"] = _weight("_gemv_w4a16_kernel", "gemv", scheme, gemv, **constants)
    if gpu.target.int8_product is not None:
        cases["gemm_w4a4"] = _gemm("gemm_w4a4", gpu, {**int8, "ascales_ptr": HALF, "wscales_ptr": HALF})
        token_scales = {"ascales_ptr": "*fp32", "channel_scales_ptr": "*fp32"}
        for op, name, on in (W4A8, f"{W4A8} sum gelu", True), (W4A8, W4A8, False), (BY_TORCH, BY_TORCH, True):
            pointers = {**token_scales, **({"sums_ptr": "*i32"} if op == BY_TORCH else int8)}
            cases[name] = _gemm(op, gpu, pointers, PTX=flags["PTX"], ACCUMULATE=on, GELU=on)
    floats = dict.fromkeys(("left_ptr", "inverse_ptr", "scales_ptr", "units_ptr", "errors_ptr"), "*fp32")
    block = {"BLOCK_C": MOST_COLUMNS, "BLOCK_N": CHANNELS, "num_warps": WARPS}
    root = {"JITTER": 1e-11, "BLOCK": quantize_basis.LARGEST, "num_warps": quantize_basis.WARPS}
    doubles = {"gram_ptr": "*fp64", "out_ptr": "*fp64"}
    cases["quantize_basis"] = "quantize_basis", "_inverse_root_kernel", doubles, root
    for name, e2m1 in (("int4", False), ("nvfp4", True)):
        rounding = {"LOW": -6.0, "HIGH": 6.0, "E2M1": e2m1, **block}
        pointers = {"residual_ptr": "*fp32", "importance_ptr": "*fp32", "tensor_ptr": "*fp32", "values_ptr": "*fp32"}
        search = {"HIGH": 6.0, "E2M1": e2m1, "COUNT": 11, "HAS_IMPORTANCE": True, "HAS_VALUES": True}
        search |= {
            "GROUP_SIZE": 16 if e2m1 else 64,
            "BLOCK_N": quantize_scales.ROWS[e2m1],
            "BLOCK_K": 256,
            "num_warps": quantize_scales.WARPS,
        }
        pointers["scales_ptr"] = "*u8" if e2m1 else HALF
        cases[f"quantize_scales {name}"] = "quantize_scales", "_fit_scales_kernel", pointers, search
        cases[f"quantize_weight {name}"] = "quantize_weight", "_round_columns_kernel", {**floats, "C": "i32"}, rounding
    if NATIVE_FP4.why_not_on(gpu) is None:
        fp4 = {"qx_ptr": "*u8", "qweight_ptr": "*u8", "ascales_ptr": "*fp8e4nv", "wscales_ptr": "*fp8e4nv"}
        cases["gemm_nvfp4"] = _gemm("gemm_nvfp4", gpu, {**fp4, "wtscale_ptr": "*fp32", "wcscales_ptr": HALF})
    if gpu.int4:
        int4 = {"qx_ptr": "*i32", "qweight_ptr": "*i32", "ascales_ptr": HALF, "wscales_ptr": HALF}
        words = {"x_down_ptr": "*i32", "proj_up_ptr": "*i32", "bias_ptr": HALF, "out_ptr": HALF}
        tile = native_int4_tile(M, N, K // 64)
        tile["num_warps"] = tile["WARPS_M"] * tile["WARPS_N"]
        for unsigned in (False, True):
            constants = {"UNSIGNED": unsigned, "BFLOAT16": True, "HAS_BIAS": True, **tile}
            case = "gemm_w4a4_native", "_gemm_w4a4_native_kernel", {**int4, **words}, constants
            cases[f"gemm_w4a4_native {'unsigned' if unsigned else 'signed'}"] = case
    if choose_projection(LONG_K, R, gpu) is Projection.SHARED:
        cases["project_act"] = _projection(gpu)
    if gpu.wgmma:
        for sum_and_gelu, cut in itertools.product((False, True), (False, True)):
            name = "gemm_w4a8_hopper" + " sum gelu" * sum_and_gelu + " cut" * cut
            cases[name] = partial(_hopper, sum_and_gelu, cut)
    return cases


def _hopper(sum_and_gelu: bool, cut: bool) -> tuple:
    from triton.experimental.gluon import language as gl

    from svdquant_pack.kernels.step import gemm_w4a8_hopper as hopper

    def descriptor(name: str, dtype: gl.dtype, *block: int) -> str:
        return f"tensordesc<{name}{list(block)},{gl.NVMMASharedLayout.get_default_for(list(block), dtype)!r}>"

    box_n = hopper.BLOCK_N // 2 if cut else hopper.BLOCK_N
    block_m, block_n, block_k, block_r = hopper.BLOCK_M, hopper.BLOCK_N, hopper.BLOCK_K, hopper.BLOCK_R
    arguments = {
        "qx_desc": descriptor("i8", gl.int8, block_m, block_k),
        "qweight_desc": descriptor("i8", gl.int8, box_n, block_k),
        "x_down_desc": descriptor("bf16", gl.bfloat16, block_m, block_r),
        "proj_up_desc": descriptor("bf16", gl.bfloat16, box_n, block_r),
        "out_desc": descriptor("bf16", gl.bfloat16, block_m // 2, block_n // 2),
        "ascales_ptr": "*fp32",
        "channel_scales_ptr": "*fp32",
        "bias_ptr": HALF,
        "PROGRAMS": "i32",
    }
    blocks = {**hopper.BLOCKS, "SWIZZLE_M": 4}
    constants = {"HAS_BIAS": True, "RANK_STEP": 32, "CUT": cut, "num_warps": 4, **blocks}
    constants |= dict.fromkeys(("ACCUMULATE", "GELU"), sum_and_gelu)
    return "gemm_w4a8_hopper", "_gemm_w4a8_hopper_kernel", arguments, constants


def compile_case(gpu: Generation, module: str, kernel: str, arguments: dict, constants: dict, *, odd: tuple = ODD):
    """The compiled kernel of one case; sizes not in `odd`, or not compiled for, are promised to be multiples of 16."""
    room = "quantizer" if module in QUANTIZER else "step"
    function = getattr(import_module(f"{KERNELS}.{room}.{module}"), kernel)
    names = function.arg_names
    options = {key: value for key, value in constants.items() if key not in names}
    constants = {key: value for key, value in constants.items() if key in names}
    types = {**SIZES, "GROUPS": "i32", "M_PADDED": "i32", **arguments}
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    others = {name for name in names if signature[name].startswith(("constexpr", "tensordesc"))}
    multiples = [name for name in names if name not in {*others, *odd, *function.do_not_specialize}]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in multiples}
    source_class = ASTSource
    if getattr(function, "is_gluon", bool)():
        from triton.experimental.gluon._runtime import GluonASTSource

        source_class = GluonASTSource
    else:
        options["enable_fp_fusion"] = module not in UNFUSED
    source = source_class(
        function, signature, {(names.index(key),): value for key, value in constants.items()}, attributes
    )
    target = GPUTarget(gpu.target.backend, gpu.target.arch, gpu.target.warp_size)
    return triton.compile(source, target=target, options=options)


def main(name: str, *options: str) -> None:
    reports, missing, failed, gpu = {}, {}, {}, row_of(name)
    left = compile_plan.left_to_others(gpu, _cases) if options == ("--own",) else []
    for name, case in _cases(gpu).items():
        if name in left:
            continue
        try:
            compiled = compile_case(gpu, *(case() if callable(case) else case))
        except ImportError as error:  # an older Triton without Gluon, or without what Gluon has for this GPU
            if (error.name or "").startswith(KERNELS):
                raise  # a case that names no file of ours
            missing[name] = str(error)
            continue
        except Exception as error:  # noqa: BLE001  compilers fail in their own ways; the reader decides what to expect
            failed[name] = str(error.__cause__ or error).strip().splitlines()[-1:]
            continue
        read = nvidia_report if gpu.target.backend == "cuda" else amd_report
        reports[name] = {"shared": compiled.metadata.shared, **read(compiled)}
    report = {"triton": triton.__version__, "kernels": reports, "missing": missing, "failed": failed}
    report |= {"left": left, "stand_in": compile_plan.stand_in(gpu).name}
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
