"""Node: two IMAGEs -> a sheet with difference map and figures."""

import torch
from comfy_api.latest import io, ui
from torch import Tensor
from torch.nn.functional import interpolate

from ..svdq_core.errors import SVDQuantError
from ..svdq_core.picture_metrics import mean_absolute_difference, psnr, ssim
from .checked_inputs import checked
from .comparison_sheet import Pair, draw_pair, heat_map, percent

SCALES = (1, 2, 5, 10, 20, 50, 100, 200)  # that "automatic" chooses from
CLIPPED = 0.005  # share of the pixels that may lie above the last colour of the difference map
QUANTILE_SAMPLE = 1 << 20  # pixels that the choice looks at


class SVDQuantCompareImages(io.ComfyNode):
    """How far a picture is from its reference, to see and in figures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SVDQuantCompareImages",
            display_name="Compare Images (SVDQuant)",
            category="SVDQuant",
            description="Sets two images side by side with a map of their difference, and measures PSNR, SSIM and mean "
            "absolute difference. For any two images; batches are compared one by one.",
            search_aliases=["image compare", "difference", "psnr", "ssim", "side by side", "a/b", "stitch"],
            is_output_node=True,
            inputs=[
                io.Image.Input("reference", tooltip="What the other is measured against. One image, or a batch."),
                io.Image.Input("image", tooltip="One image, or a batch. One image is compared with all of a batch."),
                io.String.Input("reference_name", default="reference", tooltip="What stands above it."),
                io.String.Input("image_name", default="image", tooltip="What stands above it."),
                io.Combo.Input(
                    "other_size",
                    options=["resize", "refuse"],
                    default="resize",
                    tooltip="When the sizes differ. resize: the image takes the reference's size first (bicubic), "
                    "which costs it sharpness. refuse: an error.",
                ),
                io.Float.Input(
                    "difference_scale",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.5,
                    tooltip="What differences are multiplied by before they are coloured. 0: chosen for the batch, "
                    "from 1, 2, 5, 10 and so on; at most 0.5 % of the pixels are too bright. Fix it to compare runs.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="comparison", tooltip="One sheet for each pair."),
                io.Image.Output(display_name="difference", tooltip="The difference maps alone, in the pictures' size."),
                io.String.Output(display_name="report", tooltip="The figures of each pair, and their means."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        reference: Tensor,
        image: Tensor,
        *,
        reference_name: str = "reference",
        image_name: str = "image",
        other_size: str = "resize",
        difference_scale: float = 0.0,
    ) -> io.NodeOutput:
        notes = []
        for images, name in ((reference, "reference"), (image, "image")):
            _check(images, name)
        reference, image = (_flatten_alpha(i, name, notes) for i, name in ((reference, "reference"), (image, "image")))
        image = _match_size(image, reference, other_size, notes)
        reference, image = _pair_up(reference, image)
        pairs = [_measure(*one) for one in zip(reference, image, strict=True)]
        differences = torch.stack([pair.difference for pair in pairs])
        scale = difference_scale or _choose_scale(differences)
        sheets = torch.stack([draw_pair(pair, (reference_name, image_name), scale) for pair in pairs])
        report = "\n".join([*_report(pairs), f"difference map: x {scale:g}", *notes])
        shown = {
            "images": _preview(sheets, cls),
            "a_images": _preview(reference[:1], cls),  # for the slider that web/node_results.js puts on the node
            "b_images": _preview(image[:1], cls),
            "text": (report,),
        }
        return io.NodeOutput(sheets, heat_map(differences, scale), report, ui=shown)


def _preview(images: Tensor, node: type) -> list:
    """Write pictures to the host's temporary folder; return what the page asks for them by."""
    return ui.PreviewImage(images, cls=node).as_dict()["images"]


def _check(images: Tensor, name: str) -> None:
    """Raise SVDQuantError for what is no batch of pictures."""
    shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise SVDQuantError(
            f"{name} is {shape}, expected (pictures, height, width, colours). Connect an ordinary image; of a video, "
            "its frames."
        )
    if 0 in images.shape[1:]:
        raise SVDQuantError(f"{name} has pictures without pixels: {shape}. Nothing to compare.")
    bad = int((~torch.isfinite(images)).sum())
    if bad:
        raise SVDQuantError(
            f"{name}: {bad} of its {images.numel()} values are NaN or infinite. Look for the node that made them; "
            "elsewhere such a picture is black."
        )


def _flatten_alpha(images: Tensor, name: str, notes: list[str]) -> Tensor:
    """(B, H, W, 1, 3 or 4) -> (B, H, W, 3) float32 on the CPU in 0...1; what is transparent shows white."""
    images = images.detach().to("cpu", torch.float32).clamp(0, 1)
    channels = images.shape[-1]
    if channels == 4:
        colours, alpha = images[..., :3], images[..., 3:]
        notes.append(f"{name}: transparent parts are compared on white")
        return colours * alpha + (1 - alpha)
    if channels not in (1, 3):
        raise SVDQuantError(f"{name} has {channels} channels, expected 3, or 4 with alpha. Connect an ordinary image.")
    return images.expand(*images.shape[:3], 3)


def _match_size(image: Tensor, reference: Tensor, other_size: str, notes: list[str]) -> Tensor:
    (height, width), (own_height, own_width) = reference.shape[1:3], image.shape[1:3]
    if (height, width) == (own_height, own_width):
        return image
    sizes = f"image is {own_width} x {own_height} pixels, reference {width} x {height}"
    if other_size == "refuse":
        raise SVDQuantError(f"The sizes differ: {sizes}. Scale one of them, or set other_size to resize.")
    notes.append(f"{sizes}; image was resized")
    resized = interpolate(image.movedim(-1, 1), (height, width), mode="bicubic", antialias=True)
    return resized.movedim(1, -1).clamp(0, 1)


def _pair_up(reference: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    counts = len(reference), len(image)
    if 0 in counts:
        raise SVDQuantError(f"Nothing to compare: {counts[0]} references and {counts[1]} images.")
    if counts[0] != counts[1] and 1 not in counts:
        raise SVDQuantError(
            f"{counts[0]} references and {counts[1]} images cannot be paired. Give as many of both, or one of either."
        )
    count = max(counts)
    return reference.expand(count, -1, -1, -1), image.expand(count, -1, -1, -1)


def _measure(reference: Tensor, image: Tensor) -> Pair:
    pair = image[None], reference[None]
    absolute = (image - reference).abs()
    return Pair(
        reference=reference,
        picture=image,
        difference=absolute.mean(dim=-1),
        psnr=float(psnr(*pair)),
        ssim=float(ssim(*pair)),
        mean_difference=float(mean_absolute_difference(*pair)),
        largest_difference=float(absolute.max()),
    )


def _choose_scale(differences: Tensor) -> float:
    """The largest scale at which at most CLIPPED of the pixels take the last colour; 1 for equal pictures."""
    values = differences.flatten()
    sample = values[:: max(1, len(values) // QUANTILE_SAMPLE)]
    high = float(sample.sort().values[int((len(sample) - 1) * (1 - CLIPPED))])
    if high == 0:
        high = float(values.max())
    return float(max((s for s in SCALES if s * high <= 1), default=1)) if high > 0 else 1.0


def _report(pairs: list[Pair]) -> list[str]:
    lines = [
        f"{number}: {pair.figures()}, largest difference {percent(pair.largest_difference)}"
        for number, pair in enumerate(pairs, start=1)
    ]
    if len(pairs) > 1:
        finite = [pair.psnr for pair in pairs if pair.psnr != float("inf")]
        mean_psnr = f"PSNR {sum(finite) / len(finite):.2f} dB" if finite else "all identical"
        without = len(pairs) - len(finite)
        left_out = f" ({without} identical pairs left out of PSNR)" if finite and without else ""
        mean_ssim = sum(pair.ssim for pair in pairs) / len(pairs)
        mean_difference = sum(pair.mean_difference for pair in pairs) / len(pairs)
        lines.append(f"mean: {mean_psnr}   SSIM {mean_ssim:.4f}   mean difference {percent(mean_difference)}{left_out}")
    return lines
