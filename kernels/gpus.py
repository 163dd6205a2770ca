"""The one table of GPUs: what each generation can do, which tiles and limits suit it, and how it is compiled for.

Everything that depends on the kind of GPU asks a row: paths, tiles, launches, `auto`, the environment check, tests and
cross-compilation. A new generation is a new row here, which takes tiles of tiles.py by their key: only tiles measured
to be better are rows there. `python tools/gpu_tables.py` then brings the README's tables up to date.
"""

from dataclasses import dataclass, field
from functools import cache
from importlib import import_module

import torch

from .stand_in import stand_in


@dataclass(frozen=True, eq=False)
class Target:
    """How kernels are compiled for a generation without having one.

    Args:
        arch: Triton's name of the architecture. warp_size: threads of a warp.
        shared_limit: bytes of shared memory that one block may use.
        int8_product: beginning of the matrix instruction that Triton makes of an int8 product; None: it makes none.
        spills: kernel -> words of registers spilled that keep nothing of its main loop.
    """

    arch: int | str
    warp_size: int
    shared_limit: int
    int8_product: str | None
    spills: dict[str, int] = field(default_factory=dict)

    @property
    def backend(self) -> str:
        return "cuda" if isinstance(self.arch, int) else "hip"


@dataclass(frozen=True, eq=False)  # a row is itself alone: it is a key of caches, and hashing fields takes time
class Generation:
    """A generation of GPUs: the same instructions and nearly the same memory for each block.

    Args:
        name: what compilers call it; also the name in messages and tables.
        cards: examples, for the README.
        chips: of NVIDIA the compute capabilities, of AMD the gfx names.
        int4, fp4: whether tensor cores multiply such codes natively.
        fp4_triton: the oldest Triton that compiles fp4 products for it, where that is not every one that has them.
        wgmma: whether they multiply asynchronously from shared memory, fed by bulk copies (Hopper's, not Blackwell's).
        overlaps_launches: whether a kernel may begin while the one before it runs.
        int8_rate: how many times as fast as 16-bit products with float32 sums int8 products are, as Triton makes them.
        max_fused_rank: up to which rank the quantizers compute the down projection themselves.
        shares_from_k: from which k on project_act.py computes the down projection of w4a8; None: never.
        gelu_in_quantizer: whether the w4a4 and w4a16 quantizers had better compute a GELU in front of them.
        cudnn_attention: whether cuDNN's attention is faster than FlashAttention 2.
        tiles: which rows of the tables in tiles.py it takes.
        evidence: "timed on ...", "compiled, never run" or "not compiled".
        target: how it is compiled for; None: it is not.
    """

    name: str
    cards: str
    chips: tuple[tuple[int, int] | str, ...] = ()
    int4: bool = False
    fp4: bool = False
    fp4_triton: tuple[int, int] = (0, 0)
    wgmma: bool = False
    overlaps_launches: bool = False
    int8_rate: float = 1.0
    max_fused_rank: int = 128
    shares_from_k: int | None = None
    gelu_in_quantizer: bool = True
    cudnn_attention: bool = False
    tiles: str = "default"
    evidence: str = "compiled, never run"
    target: Target | None = None

    @property
    def has_kernels(self) -> bool:
        return bool(self.chips)

    @property
    def slow_int8(self) -> str | None:
        """Why w4a8 gains no time on it, in words; None if it does."""
        if self.int8_rate >= 2:
            return None
        if self.int8_rate == 0:
            return f"{self.name} has no int8 matrix instructions"
        return f"on {self.name} Triton's int8 products are no faster than 16-bit ones"


# int8_rate: peak of int8 products over peak of 16-bit ones with float32 sums, both dense, from the makers' data sheets:
# A100 624 / 312, RTX 3090 284 / 71, RTX 4090 661 / 165, H200 1979 / 989, RTX 5090 838 / 209, MI300X 2615 / 1307,
# MI350X 4600 / 2300, MI250X 383 / 383, RX 7900 XTX 123 / 123, RX 9070 XT 389 / 195. Data-center cards of sm_86 and
# sm_89 (A40, L40S) have twice the 16-bit rate of the GeForce ones. B200 has 4500 / 2250, but only for tcgen05, of which
# Triton makes no int8 product: it takes mma.sync, an instruction of generations before, and B300 has next to no int8.
# RX 6000 has no matrix instructions: gemm_w4a8 spills 1239 registers there (Triton 3.7).
# max_fused_rank: the sums stay in registers. On Hopper a matrix product of its own is faster, because tensor-core tiles
# leave too few loads in flight. H200, M = 4608, rank 32, int8: K = 3072 0.0132 + 0.0073 ms apart, 0.0323 fused;
# K = 12288 0.068 + 0.035 apart, 0.138 fused. Elsewhere not timed: a fused pass reads the activations once less, which
# slower memories reward. On RDNA it spills.
# shares_from_k: H200, M = 4608, rank 32, the whole quantizer: K = 12288 0.0945 ms against 0.1050 with a matrix product
# apart, behind a GELU 0.146 against 0.174; K = 3072 0.0221 against 0.0204, 0.0430 against 0.0439. One of ours costs
# half the time on the CPU of a product of torch's.
# cudnn_attention: sm_90: 0.44 ms against 0.78 for 24 heads, 4608 tokens of 128 channels (H200, torch 2.11). sm_100: not
# measured here; it and sm_90 are the two on which torch itself puts cuDNN first.
# gelu_in_quantizer: the w4a4 quantizer of Hopper is slower with a GELU inside; others were not timed.
GENERATIONS = (
    Generation(
        "sm_80",
        "A100, A30, Jetson Orin",
        ((8, 0), (8, 7)),
        int4=True,
        int8_rate=2,
        target=Target(80, 32, 166912, "mma.sync"),
    ),
    Generation(
        "sm_86", "RTX 30, A40, A6000", ((8, 6),), int4=True, int8_rate=4, target=Target(86, 32, 101376, "mma.sync")
    ),
    Generation("sm_89", "RTX 40, L40S", ((8, 9),), int4=True, int8_rate=4, target=Target(89, 32, 101376, "mma.sync")),
    Generation(
        "sm_90",
        "H100, H200",
        ((9, 0),),
        wgmma=True,
        overlaps_launches=True,
        int8_rate=2,
        max_fused_rank=0,
        shares_from_k=1024,
        gelu_in_quantizer=False,
        cudnn_attention=True,
        tiles="hopper",
        evidence="timed on an H200",
        target=Target(90, 32, 232448, "wgmma"),
    ),
    Generation(
        "sm_100",
        "B200, B300",
        ((10, 0), (10, 3)),
        fp4=True,
        max_fused_rank=0,
        cudnn_attention=True,
        # the block-scaled product saves two words around its set-up
        target=Target(100, 32, 232448, "mma.sync", {"gemm_nvfp4": 2}),
    ),
    Generation(
        "sm_110",
        "Jetson Thor",
        ((11, 0),),
        fp4=True,
        max_fused_rank=0,
        target=Target(110, 32, 232448, "mma.sync", {"gemm_nvfp4": 2}),
    ),
    Generation(
        "sm_120",
        "RTX 50, RTX PRO 6000",
        ((12, 0),),
        fp4=True,
        int8_rate=4,
        target=Target(120, 32, 101376, "mma.sync"),
    ),
    Generation(
        "sm_121",
        "DGX Spark",
        ((12, 1),),
        fp4=True,
        fp4_triton=(3, 8),  # 3.7 ends in "PassManager::run failed" at the block-scaled product
        int8_rate=4,
        target=Target(121, 32, 101376, "mma.sync"),
    ),
    # its kernels fail with Triton 3.7 ("unsupported target"), and plain torch takes over
    Generation("gfx906", "Radeon VII, MI50", ("gfx906",), int8_rate=0, evidence="not compiled"),
    Generation("gfx90a", "MI100, MI200", ("gfx90a", "gfx908"), target=Target("gfx90a", 64, 65536, "v_mfma_i32_")),
    Generation("gfx942", "MI300", ("gfx942",), int8_rate=2, target=Target("gfx942", 64, 65536, "v_mfma_i32_")),
    Generation("gfx950", "MI350", ("gfx950",), int8_rate=2, target=Target("gfx950", 64, 163840, "v_mfma_i32_")),
    Generation(
        "gfx1030",
        "RX 6000",
        ("gfx1030", "gfx1031", "gfx1032", "gfx1033", "gfx1034", "gfx1035", "gfx1036"),
        int8_rate=0,
        max_fused_rank=0,
        tiles="rdna",
        target=Target("gfx1030", 32, 65536, None),
    ),
    Generation(
        "gfx1100",
        "RX 7000, Strix Halo",
        ("gfx1100", "gfx1101", "gfx1102", "gfx1103", "gfx1150", "gfx1151", "gfx1152", "gfx1153"),
        max_fused_rank=0,
        tiles="rdna",
        target=Target("gfx1100", 32, 65536, "v_wmma_i32_"),
    ),
    Generation(
        "gfx1201",
        "RX 9000",
        ("gfx1200", "gfx1201"),
        int8_rate=2,
        max_fused_rank=0,
        tiles="rdna",
        target=Target("gfx1201", 32, 65536, "v_wmma_i32_"),
    ),
)
OTHER = Generation("other", "others", int8_rate=0)
CPU = Generation("cpu", "no GPU", int8_rate=0, tiles="cpu")
_BY_CHIP = {chip: row for row in GENERATIONS for chip in row.chips}


def generation_of_chip(chip: tuple[int, int] | str) -> Generation:
    """The row of a compute capability or gfx name; OTHER for a GPU that no kernel here was made for.

    Of chips that are not in the table, NVIDIA's of Ampere and Ada run sm_80's code; of AMD's nothing is known but that
    16-bit products need no instruction of their own.
    """
    if chip in _BY_CHIP:
        return _BY_CHIP[chip]
    if isinstance(chip, tuple):
        return _BY_CHIP[(8, 0)] if chip[0] == 8 else OTHER  # Triton does not compile for Turing and older
    return Generation(chip, "other AMD", (chip,)) if chip.startswith("gfx") else OTHER


@cache
def _gpu_generation(index: int) -> Generation:
    if torch.version.hip:
        return generation_of_chip(torch.cuda.get_device_properties(index).gcnArchName.split(":")[0])
    return generation_of_chip(torch.cuda.get_device_capability(index))


def generation(device: torch.device) -> Generation:
    """The row of the table for a device: CPU for a CPU, OTHER for what no kernel here was made for."""
    if device.type == "cuda":
        return _gpu_generation(torch.cuda.current_device() if device.index is None else device.index)
    if device.type == "meta":
        return stand_in.gpu or OTHER
    return CPU if device.type == "cpu" else OTHER


@cache
def why_no_import() -> str | None:
    """Why Triton cannot be imported, in words; None if it can. Whether it can compile shows only when it does."""
    try:
        module = import_module("triton")
    except ModuleNotFoundError as error:
        if error.name == "triton":
            return "Triton is not installed"
        return f"Triton cannot be imported: it needs {error.name}, which is not installed"
    except (Exception, SystemExit) as error:  # noqa: BLE001  (a broken Triton raises anything)
        return f"Triton cannot be imported: {type(error).__name__}: {error}"
    return None if hasattr(module, "jit") else "Triton cannot be imported: its folder holds no Triton"


def takes_ptx(device: torch.device) -> bool:
    """Whether inline PTX compiles for the device: an NVIDIA GPU, not AMD's and not the interpreter."""
    if device.type == "meta":
        return any(isinstance(chip, tuple) for chip in generation(device).chips)
    return device.type == "cuda" and torch.version.hip is None


def why_no_triton(device: torch.device) -> str | None:
    """Why no Triton kernel can run on the device, in words for the user; None if they can be tried."""
    if device.type == "cpu":
        return "kernels are for GPUs"
    if not generation(device).has_kernels:
        return f"no kernel is made for this {device.type} device"
    return why_no_import()


def processors(device: torch.device) -> int:
    """Streaming multiprocessors or compute units of a GPU."""
    return stand_in.processors if device.type == "meta" else _gpu_processors(device.index)


@cache
def _gpu_processors(index: int | None) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count
