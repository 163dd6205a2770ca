"""What is compared: every way to quantize the model, by name, in the order of importance."""

from collections.abc import Iterator
from dataclasses import dataclass

BITS = (8, 7, 6, 5, 4, 3)
RANKS = (0, 16, 64, 128)  # besides the usual 32
USUAL_RANK = 32
TITLES = {
    "nearest": "naive (round to nearest)",
    "smoothquant": "SmoothQuant",
    "hadamard": "block Hadamard rotation",
    "nf4": "NF4",
    "lorc": "LoRC",
    "svd": "SVD without smoothing",
    "paper": "SVDQuant, as in the paper",
    "deepcompressor": "SVDQuant, DeepCompressor's recipe",
    "deepcompressor_gptq": "SVDQuant, DeepCompressor's recipe with GPTQ",
    "fast": "ours, fast",
    "best": "ours, best",
}


@dataclass(frozen=True)
class Way:
    """One way to quantize the model.

    Args:
        name: for files and options.
        kind: "baseline" (a method of research/baselines.py), "pack" (the pack's quantizer, simulated),
            "kernels" (the same through the pack's own kernels), "modulation" (only those layers) or "arithmetic"
            (16-bit arithmetic).
        method: key of TITLES.
        precision: "int4", "nvfp4" or "int8".
        activations: "w4a4" or "w4a8".
        bits: of integer weights and activations, instead of precision and activations.
        rank: of the branch.
        is_calibrated: inputs recorded on captions, otherwise on noise.
        has_lora: also measured with the LoRA.
    """

    name: str
    kind: str
    method: str = ""
    precision: str = "int4"
    activations: str = "w4a4"
    bits: tuple[int, int] | None = None
    rank: int = USUAL_RANK
    is_calibrated: bool = True
    has_lora: bool = False

    @property
    def label(self) -> str:
        """Its number format, as the paper writes it."""
        if self.kind == "arithmetic":
            return "BF16"
        if self.method == "nf4" or self.kind == "modulation":
            return "W4A16"
        if self.bits is not None:
            return f"INT W{self.bits[0]}A{self.bits[1]}"
        if self.precision == "int8":
            return "INT W8A8"
        return ("NVFP4 " if self.precision == "nvfp4" else "INT ") + self.activations.upper()

    @property
    def title(self) -> str:
        """Its name in a table."""
        if self.kind == "modulation":
            return "modulation layers only" + (", mean kept" if self.is_calibrated else "")
        if self.kind == "arithmetic":
            return "BF16 weights, BF16 arithmetic"
        words = [TITLES[self.method]]
        if self.kind != "baseline":
            words.append("calibrated" if self.is_calibrated else "no data")
        if self.kind == "kernels":
            words.append("the pack's kernels")
        return ", ".join(words)


def _baseline(method: str, name: str, **settings) -> Way:
    return Way(f"{method}_{name}", "baseline", method, **settings)


def _pack(method: str, precision: str, activations: str, is_calibrated: bool, rank: int = USUAL_RANK, **more) -> Way:
    calibrated = "calibrated" if is_calibrated else "no_data"
    name = f"pack_{method}_{precision}_{activations}_r{rank}_{calibrated}"
    kind = more.pop("kind", "pack")
    return Way(
        name if kind == "pack" else f"{kind}_{name}",
        kind,
        method,
        precision,
        activations,
        None,
        rank,
        is_calibrated,
        **more,
    )


def _headline() -> Iterator[Way]:
    yield _pack("best", "int4", "w4a4", True, has_lora=True)
    yield _pack("best", "int4", "w4a8", True, has_lora=True)
    yield _pack("best", "nvfp4", "w4a4", True, has_lora=True)
    yield _baseline("nearest", "w4a4", has_lora=True)
    yield _baseline("paper", "w4a4", has_lora=True)
    yield _baseline("nearest", "w3a3", bits=(3, 3), has_lora=True)
    yield _baseline("deepcompressor_gptq", "w4a4", has_lora=True)
    yield _baseline("paper", "w8a8", bits=(8, 8), has_lora=True)
    yield _baseline("nf4", "w4a16", has_lora=True)
    for precision, activations in (("int4", "w4a4"), ("int4", "w4a8"), ("nvfp4", "w4a4")):
        yield _pack("best", precision, activations, True, kind="kernels", has_lora=True)
    for method in ("smoothquant", "hadamard", "svd", "lorc", "deepcompressor"):
        yield _baseline(method, "w4a4")
    yield Way("arithmetic", "arithmetic")
    yield Way("modulation", "modulation", is_calibrated=False)
    yield Way("modulation_mean", "modulation")


def _ours() -> Iterator[Way]:
    for precision, activations in (("int4", "w4a4"), ("int4", "w4a8"), ("nvfp4", "w4a4")):
        yield _pack("fast", precision, activations, False, has_lora=True)
        yield _pack("fast", precision, activations, True)
        yield _pack("best", precision, activations, False)
    yield _pack("fast", "int8", "w4a8", False)
    yield _pack("best", "int8", "w4a8", True, has_lora=True)


def _baselines() -> Iterator[Way]:
    for method in ("nearest", "paper", "deepcompressor_gptq"):
        yield _baseline(method, "w4a8", activations="w4a8")
        yield _baseline(method, "nvfp4", precision="nvfp4")


def _low_bits() -> Iterator[Way]:
    for method in ("nearest", "smoothquant", "paper", "best"):
        yield _baseline(method, "w3a4", bits=(3, 4))
    for bits in reversed(BITS):
        for method in ("nearest", "smoothquant", "paper", "best"):
            yield _baseline(method, f"w{bits}a{bits}", bits=(bits, bits))


def _ranks() -> Iterator[Way]:
    for rank in RANKS:
        yield _pack("best", "int4", "w4a4", True, rank)
        yield _baseline("paper", f"w4a4_r{rank}", rank=rank)
        yield _pack("fast", "int4", "w4a4", False, rank)
        yield _pack("best", "int4", "w4a8", True, rank)


def ways() -> list[Way]:
    """All of them, each once, the most important first."""
    found: dict[str, Way] = {}
    for way in (*_headline(), *_ours(), *_ranks(), *_low_bits(), *_baselines()):
        found.setdefault(way.name, way)
    return list(found.values())
