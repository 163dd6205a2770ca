"""Which kernels the tests compile for each GPU.

Those with matrix products, whose instructions and tiles are a GPU's own, for every one. The others only for the oldest
and the newest of a kind: between these they are the same code in registers and shared memory of the same size.
`python dev.py compile` compiles all for all.
"""

from svdquant_pack.kernels.gpus import GENERATIONS, Generation

COMPILED = [row for row in GENERATIONS if row.target is not None]
PRODUCTS = ("gemm_w4a4", "gemm_w4a4_native", "gemm_w4a8", "gemm_w4a8_by_torch", "gemm_w4a8_hopper", "gemm_nvfp4")
PRODUCTS += ("project_act", "quantize_act", "quantize_act_int8")  # the last two where they project as well


def stand_in(gpu: Generation) -> Generation:
    """The GPU that compiles kernels without products for this one; itself at both ends of its kind."""
    alike = [
        r for r in COMPILED if (r.target.backend, r.target.warp_size) == (gpu.target.backend, gpu.target.warp_size)
    ]
    return gpu if gpu in (alike[0], alike[-1]) else alike[0]


def left_to_others(gpu: Generation, cases) -> list[str]:
    """Names of the cases of a GPU that its stand-in compiles: without a product, and the same in all that is given.

    Args:
        cases: the function that gives the cases of a GPU.
    """
    own, theirs = cases(gpu), cases(stand_in(gpu))
    if stand_in(gpu) is gpu:
        return []
    return [
        name
        for name, case in own.items()
        if not callable(case) and case[0] not in PRODUCTS and case == theirs.get(name)
    ]


def complete(reports: dict[str, dict]) -> dict[str, dict]:
    """The reports by GPU, each with the kernels that another GPU compiled for it."""
    whole = {}
    for name, report in reports.items():
        whole[name] = report
        if "error" not in report:
            theirs = reports[report["stand_in"]].get("kernels", {})
            left = {kernel: theirs[kernel] for kernel in report["left"] if kernel in theirs}
            whole[name] = report | {"kernels": left | report["kernels"]}
    return whole
