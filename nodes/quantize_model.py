"""Node: BF16 MODEL -> SVDQuant file and MODEL."""

import logging
import time
from pathlib import Path

from comfy_api.latest import io

from ..svdq_core.checkpoint import require_space
from ..svdq_core.checkpoint.formats import FORMATS, QUANTIZED_FORMAT, save_model
from ..svdq_core.quantize import PartReport, QuantSpec
from ..svdq_core.quantize.model import count_linears, quantize_model
from .error_plot import draw_errors
from .host import files
from .host.model import DenseWeights, architecture_of, compute_device, load_model, plain_extras
from .host.progress import Progress

logger = logging.getLogger("svdquant")

FILE_PRECISION = {"int4": "int4", "nvfp4": "fp4", "int8": "int8"}  # as the names of published files spell it
# weight, scales and a branch of rank 32 on small layers: upper estimates for the disk check
BYTES_PER_WEIGHT = {"int4": 0.65, "nvfp4": 0.65, "int8": 1.15}
WORST_SHOWN = 5


class SVDQuantQuantizeModel(io.ComfyNode):
    """Quantizes a full-precision FLUX or PixArt model in the graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SVDQuantQuantizeModel",
            display_name="Quantize Model (SVDQuant)",
            category="SVDQuant",
            description="Makes a 4-bit SVDQuant file of a full-precision FLUX.1 or PixArt model, LoRAs on it baked in, "
            "and returns the quantized model. No calibration data is needed.",
            search_aliases=["svdq", "deepcompressor", "int4", "nvfp4", "compress", "4-bit"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="A model in BF16, FP16 or FP32, from Load Diffusion Model."),
                io.Combo.Input(
                    "precision",
                    options=list(FILE_PRECISION),
                    default="int4",
                    tooltip="int4 runs well on every GPU; nvfp4 is native on Blackwell (RTX 50). int8 (W8A8) is twice "
                    "the size and nearest to the original; its files are read by this pack only.",
                ),
                io.Combo.Input(
                    "activations",
                    options=["w4a8", "w4a4"],
                    default="w4a8",
                    tooltip="The mode that the result is tuned for and that the returned model uses. Files run in "
                    "every mode.",
                ),
                io.Int.Input(
                    "rank",
                    default=32,
                    min=0,
                    max=256,
                    step=16,
                    tooltip="Rank of the 16-bit branch. Higher is closer to the original, and larger.",
                ),
                io.Combo.Input("method", options=["fast"], default="fast", tooltip="fast: from the weights alone."),
                io.String.Input(
                    "filename_prefix",
                    default="my-model",
                    tooltip="The file becomes output/diffusion_models/svdq-<precision>_r<rank>-<this>.safetensors.",
                ),
                io.Boolean.Input("overwrite", default=False, tooltip="Replace a file of that name."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    control_after_generate=False,
                    tooltip="The same seed on the same machine writes the same file.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The quantized model, loaded from the file just written."),
                io.String.Output(display_name="path"),
                io.String.Output(display_name="report"),
                io.Image.Output(display_name="error_plot", tooltip="Relative output error of each layer."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        precision: str,
        activations: str,
        rank: int,
        method: str,
        filename_prefix: str,
        overwrite: bool,
        seed: int,
    ) -> io.NodeOutput:
        started = time.perf_counter()
        spec = QuantSpec(precision=precision, activations=activations, rank=rank, method=method, seed=seed)
        folder, _, stem = filename_prefix.strip().rpartition("/")
        name = f"svdq-{FILE_PRECISION[precision]}_r{rank}-{stem}"
        path = files.output_path(f"{folder}/{name}" if folder else name, overwrite)
        weights = DenseWeights(model)
        architecture = architecture_of(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        require_space(path, int(weights.count * BYTES_PER_WEIGHT[precision]))
        progress = Progress(count_linears(architecture, weights.names))
        quantized, reports, kept = quantize_model(
            architecture, weights, weights.names, spec, compute_device(model), progress.step
        )
        quantized.plain |= plain_extras(model)
        quantized.metadata |= _provenance(spec, weights.patched)
        save_model(path, quantized, FORMATS[QUANTIZED_FORMAT[precision]](architecture))
        del quantized
        seconds = time.perf_counter() - started
        report = _report(path, reports, kept, weights, seconds)
        logger.info("quantized %s in %.1f s", path.name, seconds)
        plot = draw_errors(reports, f"{path.name}: relative output error of each part")
        return io.NodeOutput(load_model(str(path), activations), str(path), report, plot)


def _provenance(spec: QuantSpec, patched: list[str]) -> dict[str, str]:
    return {
        "svdquant_method": f"{spec.method}, activations {spec.activations}, rank {spec.rank}, seed {spec.seed}",
        "svdquant_baked_patches": str(len(patched)),
    }


def _report(path: Path, reports: list[PartReport], kept: list[str], weights: DenseWeights, seconds: float) -> str:
    layers = [r for r in reports if r.scheme != "awq"]
    mean = sum(r.relative_error for r in layers) / max(len(layers), 1)
    lines = [
        f"{path.name}: {len(layers)} parts in {seconds:.1f} s, {path.stat().st_size / 2**20:.1f} MiB "
        f"(16-bit: {weights.count * 2 / 2**20:.1f} MiB)",
        f"relative output error on inputs drawn from the weights: mean {mean:.4f}",
        "largest errors:",
    ]
    for report in sorted(layers, key=lambda r: r.relative_error, reverse=True)[:WORST_SHOWN]:
        lines.append(f"  {report.layer} rows {report.rows} columns {report.columns}: {report.relative_error:.4f}")
    if weights.patched:
        lines.append(f"patches (LoRAs) baked into {len(weights.patched)} weights")
    lines += [f"kept in 16 bits: {sentence}" for sentence in kept]
    return "\n".join(lines)
