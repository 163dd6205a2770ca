"""Node: BF16 MODEL -> SVDQuant file and MODEL."""

import logging
import time
from pathlib import Path

from comfy_api.latest import io, ui

from ..svdq_core.checkpoint import require_space
from ..svdq_core.errors import SVDQuantError
from ..svdq_core.quantize import QuantSpec
from ..svdq_core.quantize.estimate import expected_time
from ..svdq_core.quantize.journal import journal_folder, stored_bytes
from ..svdq_core.quantize.overrides import Overrides
from ..svdq_core.quantize.precheck import precheck
from ..svdq_core.quantize.refine import RefineSpec
from ..svdq_core.quantize.refine_file import describe as describe_refined
from ..svdq_core.quantize.refine_file import quantize_refined
from ..svdq_core.quantize.spec import PRESETS, REFINE
from ..svdq_core.quantize.to_file import AUTO, quantize_to_file
from .calibration import CalibrationFile
from .checked_inputs import checked
from .error_plot import draw_errors
from .host import files
from .host.model.build import load_model
from .host.model.dense_weights import DenseWeights
from .host.quantize.layer_progress import LayerProgress, StepProgress
from .host.quantize.plan_patcher import plan_patcher
from .host.quantize.quantize_job import fit_calibration, layer_costs, make_job, reserve_room, runs_of
from .host.quantize.record_calibration import find_calibration, list_calibrations
from .quantize_report import describe

logger = logging.getLogger("svdquant")

FILE_PRECISION = {"int4": "int4", "nvfp4": "fp4", "int8": "int8"}  # as the names of published files spell it
COPIES = 2  # on the disk at the end: finished layers, and the file put together from them
NO_CALIBRATION = "none"
WRITABLE = ("nunchaku", "comfy", "svdquant")  # of the formats those that hold quantized layers


class SVDQuantQuantizeModel(io.ComfyNode):
    """Quantizes a full-precision diffusion model in the graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SVDQuantQuantizeModel",
            display_name="Quantize Model (SVDQuant)",
            category="SVDQuant",
            description="Makes a 4-bit SVDQuant file of any full-precision diffusion model, LoRAs on it baked in, and "
            "returns the quantized model. Works without calibration, and better with it. Interrupted, it goes on where "
            "it stopped.",
            search_aliases=["svdq", "deepcompressor", "Krea2SVDQuantQuantize", "int4", "nvfp4", "compress", "4-bit"],
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
                    advanced=True,
                    options=["w4a8", "w4a4"],
                    default="w4a8",
                    tooltip="The mode that the result is tuned for and that the returned model uses. Files run in "
                    "every mode.",
                ),
                io.Int.Input(
                    "rank",
                    advanced=True,
                    default=32,
                    min=0,
                    max=256,
                    step=16,
                    tooltip="Rank of the 16-bit branch. Higher is closer to the original, and larger.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(PRESETS),
                    default="best",
                    tooltip="best: rounds so that errors cancel (GPTQ); nearer to the original, most of all with a "
                    "calibration. fast: rounds to the nearest value, in a quarter of the time. refine: best, then "
                    "every block is trained to do what the original does; slowest and closest. Takes a calibration.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="my-model",
                    tooltip="The file becomes output/diffusion_models/svdq-<precision>_r<rank>-<this>.safetensors.",
                ),
                io.Boolean.Input(
                    "overwrite",
                    advanced=True,
                    default=False,
                    tooltip="Replace a file of that name. Off: the new file gets a number.",
                ),
                io.Int.Input(
                    "seed",
                    advanced=True,
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    control_after_generate=False,
                    tooltip="The same seed on the same machine writes the same file.",
                ),
                io.Combo.Input(
                    "calibration",
                    advanced=True,
                    options=[NO_CALIBRATION, *list_calibrations()],
                    default=NO_CALIBRATION,
                    optional=True,
                    tooltip="A file of Save Calibration. none: the model is run on noise to find its inputs.",
                ),
                CalibrationFile.Input(
                    "recorded",
                    optional=True,
                    tooltip="From Save Calibration in the same graph; comes before the choice above.",
                ),
                io.String.Input(
                    "keep_16bit",
                    advanced=True,
                    default="",
                    optional=True,
                    tooltip="Layers that stay in 16 bits: names as in the report, with * for anything, separated by "
                    "commas: double_blocks.0.*, *.linear2. With =int8, =int4 or =nvfp4 behind a name: in that "
                    "precision instead.",
                ),
                io.Int.Input(
                    "keep_worst",
                    advanced=True,
                    default=0,
                    min=0,
                    max=1000,
                    optional=True,
                    tooltip="So many of the layers with the largest errors stay in 16 bits as well.",
                ),
                io.Combo.Input(
                    "format",
                    advanced=True,
                    options=[AUTO, *WRITABLE],
                    default=AUTO,
                    optional=True,
                    tooltip="auto: the layout of the family's published files, this pack's own where there is none. "
                    "comfy: ComfyUI's layout for each layer, INT4 only. svdquant: this pack's own, every precision.",
                ),
                io.Float.Input(
                    "error_limit",
                    advanced=True,
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    optional=True,
                    tooltip="Layers with a larger relative error stay in 16 bits as well; 0: no limit.",
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
    def fingerprint_inputs(cls, calibration: str = NO_CALIBRATION, **inputs) -> str:
        return "" if calibration in (None, NO_CALIBRATION) else files.fingerprint(str(find_calibration(calibration)))

    @classmethod
    @checked
    def execute(
        cls,
        model,
        *,
        precision: str,
        activations: str,
        rank: int,
        method: str,
        filename_prefix: str,
        overwrite: bool,
        seed: int,
        calibration: str = NO_CALIBRATION,
        recorded: str | None = None,
        keep_16bit: str = "",
        keep_worst: int = 0,
        error_limit: float = 0.0,
        format: str = AUTO,
    ) -> io.NodeOutput:
        started = time.perf_counter()
        refines = method == REFINE
        spec = QuantSpec(precision, activations, rank, "best" if refines else method, seed)
        overrides = Overrides.parse(keep_16bit, keep_worst, error_limit)
        path = _target(filename_prefix, spec, overwrite)
        file = Path(recorded) if recorded else None if calibration == NO_CALIBRATION else find_calibration(calibration)
        if refines and file is None:
            raise SVDQuantError(
                "Method refine trains on calls of the model that were recorded: on noise it makes pictures worse. "
                "Record a calibration (Start Calibration and Save Calibration), or choose method best."
            )
        weights, found = DenseWeights(model), plan_patcher(model)
        fitted = None if file is None else fit_calibration(weights, file)
        job = make_job(found, weights, path, spec=spec, overrides=overrides, calibration=fitted, form=format)
        require_space(path, COPIES * found.plan.nbytes(spec) - stored_bytes(path))
        reserve_room(model, found.plan, spec)
        progress, refined = LayerProgress(layer_costs(found.plan)), ""
        check = precheck(found.plan, weights, spec, overrides.names)
        warnings = check.warnings()
        announced = [*found.plan.describe(spec), *expected_time(found.plan, spec, job.device)]
        announced += [*check.summary(), *warnings]
        for line in (*announced, *found.notes):
            logger.log(logging.WARNING if line in warnings else logging.INFO, "%s", line)
        progress.show("\n".join(announced))
        try:
            if refines and file is not None:
                training = RefineSpec(seed=seed)
                runs = runs_of(found, model, job, file)
                outcome, blocks = quantize_refined(
                    job, runs, training, on_layer=progress.step, on_step=StepProgress().step
                )
                refined = f"refined: {describe_refined(training, blocks)}"
            else:
                outcome = quantize_to_file(job, progress.step)
        except BaseException:  # the host's interruption, too
            if journal_folder(path).exists():
                logger.info("%s: finished layers wait in %s; the same settings go on", path.name, journal_folder(path))
            raise
        assert outcome is not None  # only further processes get none
        seconds = time.perf_counter() - started
        report = describe(path, outcome, weights=weights, calibration=fitted, seconds=seconds, found=found)
        report = "\n".join([report, *([refined] if refined else []), *warnings])
        logger.info("quantized %s in %.1f s", path.name, seconds)
        plot = draw_errors(outcome.reports, f"{path.name}: relative output error of each part")
        return io.NodeOutput(load_model(str(path), activations), str(path), report, plot, ui=ui.PreviewText(report))


def _target(filename_prefix: str, spec: QuantSpec, overwrite: bool) -> Path:
    folder, _, stem = filename_prefix.strip().rpartition("/")
    name = f"svdq-{FILE_PRECISION[spec.precision]}_r{spec.rank}-{stem}"
    return files.output_path(f"{folder}/{name}" if folder else name, overwrite)
