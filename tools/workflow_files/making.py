"""Workflows that make, convert and compare models, PixArt-Sigma, and the environment check."""

from collections.abc import Iterator

from . import files, parts
from .graph import ModelFile, Node, Output, Workflow
from .parts import DEFAULT_PROMPT, FILES, PICTURE, PROMPT

QUANTIZE, WRITE, CHECK, RECORD = "Quantize", "Write", "Check", "Record"
# different subjects, lights and styles: what is recorded should be like what will be drawn
RECORDED_PROMPTS = (
    DEFAULT_PROMPT,
    "A portrait of an old fisherman with a grey beard, soft window light, photograph, shallow depth of field",
    "A shop front at night in the rain, a neon sign that reads OPEN, reflections on the street, cinematic",
    "A bright watercolour of a fox reading a book under a tree, flowers, white background",
)


def _quantize(
    workflow: Workflow, model: Node, prefix: str, method: str = "fast", recorded: Output | None = None
) -> Node:
    wire = {} if recorded is None else {"recorded": recorded}
    return workflow.add(
        QUANTIZE,
        "SVDQuantQuantizeModel",
        "Quantize",
        model=model,
        precision="int4",
        activations="w4a8",
        rank=32,
        method=method,
        filename_prefix=prefix,
        overwrite=False,
        seed=0,
        calibration="none",
        keep_16bit="",
        keep_worst=0,
        error_limit=0.0,
        **wire,
    )


def _show_quantized(workflow: Workflow, quantized: Node) -> None:
    parts.show_text(workflow, QUANTIZE, "File written", quantized[1])
    parts.show_text(workflow, QUANTIZE, "Report", quantized[2], (430, 300))
    plot = workflow.add(QUANTIZE, "PreviewImage", "Error of each layer", images=quantized[3])
    plot.size = (640, 300)


def environment_check() -> Workflow:
    workflow = Workflow(
        "environment-check",
        "environment check",
        "Queue this before you download anything: it says which kernels will run on your card, which file of a family "
        "to take, how much memory FLUX.1 needs, and what to repair. It needs no model and takes seconds.",
    )
    check = workflow.add(CHECK, "SVDQuantEnvironmentCheck", "Environment Check (SVDQuant)")
    parts.show_text(workflow, CHECK, "Report", check[0], (1000, 620))
    return workflow


def quantize_flux() -> Workflow:
    note = (
        "Choose **your own** FLUX.1 finetune in *Load Diffusion Model* (BF16, FP16 or FP8). The file is written to "
        "`output/diffusion_models/svdq-int4_r32-my-flux.safetensors` and from then on stands in the list of *Load "
        "SVDQuant Model*; press **R**. A name that exists is refused unless *overwrite* is on. LoRAs between loader "
        "and *Quantize* are baked in. On RTX 50 set *precision* to `nvfp4`."
    )
    workflow = Workflow(
        "quantize-your-own-flux", "quantize your own FLUX.1", "Makes a 4-bit file of a 16-bit model, and draws.", note
    )
    quantized = _quantize(workflow, parts.bf16_loader(workflow, files.FLUX_DEV_BF16), "my-flux")
    clip, vae = parts.flux_text_encoders(workflow), parts.vae_loader(workflow)
    positive, negative = parts.flux_prompt(workflow, clip, DEFAULT_PROMPT, 3.5)
    latent = parts.sample(workflow, quantized, positive, negative, parts.empty_latent(workflow))
    parts.save(workflow, parts.decode(workflow, latent, vae), workflow.name)
    _show_quantized(workflow, quantized)
    return workflow


def quantize_flux_calibrated() -> Workflow:
    note = (
        "Choose **your own** FLUX.1 finetune, and write **prompts of the kind that you draw**. One run records what "
        "the model's layers see while it draws the four prompts, quantizes it with that, and draws the first one again "
        "in 4 bits. The recording is `output/svdquant_calibration/my-flux.safetensors`, the model "
        "`output/diffusion_models/svdq-int4_r32-my-flux-calibrated.safetensors`.\n\n"
        "More prompts are better. To record more: mute the box *Quantize* (select it, **Ctrl+M**), write other prompts "
        "and queue, as often as you like: they add up. Then unmute it and queue once more. *take* starts over.\n\n"
        "Cancel whenever you like: the next run goes on where quantizing stopped."
    )
    workflow = Workflow(
        "quantize-your-own-flux-calibrated",
        "quantize your own FLUX.1, calibrated",
        "Makes a better 4-bit file of a 16-bit model: it records your prompts first.",
        note,
    )
    dense = parts.bf16_loader(workflow, files.FLUX_DEV_BF16)
    clip, vae = parts.flux_text_encoders(workflow), parts.vae_loader(workflow)
    start = workflow.add(
        RECORD, "SVDQuantCalibrationStart", "Record", model=dense, name="my-flux", take=1, tokens=512, gram_mib=2048
    )
    latent = parts.empty_latent(workflow)
    prompts = [parts.flux_prompt(workflow, clip, text, 3.5) for text in RECORDED_PROMPTS]
    drawn = [
        parts.sample(workflow, start, *prompt, latent, title=f"Sampler, prompt {number}")
        for number, prompt in enumerate(prompts, start=1)
    ]
    pictures = drawn[0]
    for further in drawn[1:]:
        pictures = workflow.add(RECORD, "LatentBatch", "All pictures", samples1=pictures, samples2=further)
    saved = workflow.add(RECORD, "SVDQuantCalibrationSave", "Save recording", model=start, samples=pictures)
    parts.show_text(workflow, RECORD, "What was recorded", saved[2], (430, 300))
    parts.save(workflow, parts.decode(workflow, saved, vae, "Decode, 16 bits"), f"{workflow.name}-16-bits")
    quantized = _quantize(workflow, dense, "my-flux-calibrated", "best", saved[1])
    _show_quantized(workflow, quantized)
    again = parts.sample(workflow, quantized, *prompts[0], latent, title="Sampler, 4 bits")
    parts.save(workflow, parts.decode(workflow, again, vae, "Decode, 4 bits"), workflow.name, "Save picture, 4 bits")
    return workflow


def compare_bf16() -> Workflow:
    note = (
        "Both pictures come from the same seed. The map on the right shows where they differ, and how much its colours "
        "mean; higher PSNR and SSIM are nearer. For scale: draw 16 bits again with another seed. Small changes of "
        "layout lower the figures a lot and are not worse pictures."
    )
    workflow = Workflow(
        "compare-bf16",
        "16 bits against 4 bits",
        "Draws the same picture with both models, and shows and measures the difference.",
        note,
    )
    dense = parts.bf16_loader(workflow, files.FLUX_DEV_BF16)
    loader = parts.svdquant_loader(workflow, files.svdquant_flux("flux.1-dev"))
    clip, vae = parts.flux_text_encoders(workflow), parts.vae_loader(workflow)
    positive, negative = parts.flux_prompt(workflow, clip, DEFAULT_PROMPT, 3.5)
    latent = parts.empty_latent(workflow)
    pictures = []
    for title, model in (("16 bits", dense), ("4 bits", loader)):
        sampled = parts.sample(workflow, model, positive, negative, latent, title=f"Sampler, {title}")
        pictures.append(parts.decode(workflow, sampled, vae, f"Decode, {title}"))
    compared = workflow.add(
        PICTURE,
        "SVDQuantCompareImages",
        "Side by side",
        reference=pictures[0],
        image=pictures[1],
        reference_name="16 bits",
        image_name="4 bits",
        other_size="refuse",
        difference_scale=0.0,
    )
    compared.size = (760, 460)
    parts.show_text(workflow, PICTURE, "Figures", compared[2], (430, 130))
    parts.save(workflow, compared, workflow.name)
    parts.show_text(workflow, FILES, "What was loaded", loader[1])
    return workflow


def convert() -> Workflow:
    note = (
        "Reads every SVDQuant form that this pack knows, the folders of older releases included, and writes one file "
        "to `output/diffusion_models`. A LoRA put between the two nodes is kept as further rank. The same without "
        "ComfyUI: `python dev.py convert IN OUT`."
    )
    workflow = Workflow("convert", "convert a model", "Writes an SVDQuant model in another file format.", note)
    loader = parts.svdquant_loader(workflow, files.svdquant_flux("flux.1-dev"))
    export = workflow.add(
        WRITE,
        "SVDQuantExportModel",
        "Write",
        model=loader,
        format="nunchaku",
        filename_prefix="svdq-my-model",
        overwrite=False,
    )
    parts.show_text(workflow, WRITE, "File written", export[0])
    parts.show_text(workflow, FILES, "What was loaded", loader[1])
    return workflow


def _pixart_prompt(workflow: Workflow) -> tuple[Node, Node, Node]:
    clip = workflow.add(
        FILES, "CLIPLoader", "Text encoder", files.T5, clip_name=files.T5.name, type="pixart", device="default"
    )
    positive = workflow.add(PROMPT, "CLIPTextEncode", "Prompt", clip=clip, text=DEFAULT_PROMPT)
    negative = workflow.add(PROMPT, "CLIPTextEncode", "Negative prompt", clip=clip, text="")
    size = workflow.add(PROMPT, "EmptyLatentImage", "Size", width=1024, height=1024, batch_size=1)
    return positive, negative, size


def _pixart_draw(workflow: Workflow, model: Node) -> None:
    vae = parts.vae_loader(workflow, files.SDXL_VAE)
    positive, negative, size = _pixart_prompt(workflow)
    latent = parts.sample(workflow, model, positive, negative, size, cfg=4.5, scheduler="normal")
    parts.save(workflow, parts.decode(workflow, latent, vae), workflow.name)


def pixart_sigma() -> Workflow:
    note = (
        "Nobody publishes 4-bit files of PixArt-Sigma yet: make yours with *pixart-sigma-quantize*, once, then it "
        "stands in the list. Sizes of 256 pixels and less do not work with this model."
    )
    workflow = Workflow("pixart-sigma", "PixArt-Sigma", "Text to picture with 4-bit PixArt-Sigma.", note)
    loader = parts.svdquant_loader(workflow, files.PIXART_SVDQUANT)
    _pixart_draw(workflow, loader)
    parts.show_text(workflow, FILES, "What was loaded", loader[1])
    return workflow


def pixart_sigma_quantize() -> Workflow:
    file: ModelFile = files.PIXART_BF16
    note = (
        f"Rename the downloaded `diffusion_pytorch_model.safetensors` to `{file.name}`. The 4-bit file is written to "
        f"`output/diffusion_models/{files.PIXART_SVDQUANT.name}`; *pixart-sigma* loads it."
    )
    workflow = Workflow(
        "pixart-sigma-quantize", "quantize PixArt-Sigma", "Makes a 4-bit file of PixArt-Sigma, and draws.", note
    )
    quantized = _quantize(workflow, parts.bf16_loader(workflow, file), "pixart-sigma")
    _pixart_draw(workflow, quantized)
    _show_quantized(workflow, quantized)
    return workflow


def workflows() -> Iterator[Workflow]:
    for describe in (
        environment_check,
        quantize_flux,
        quantize_flux_calibrated,
        compare_bf16,
        convert,
        pixart_sigma,
        pixart_sigma_quantize,
    ):
        yield describe()
