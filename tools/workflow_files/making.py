"""Workflows that make, convert and compare models, PixArt-Sigma, and the environment check."""

from collections.abc import Iterator

from . import files, parts
from .graph import Node, Output, Workflow
from .parts import DEFAULT_PROMPT, FILES, PICTURE, PROMPT

QUANTIZE, WRITE, CHECK, RECORD = "Quantize", "Write", "Check", "Record"
# different subjects, lights and styles: what is recorded should be like what will be drawn
RECORDED_PROMPTS = (
    DEFAULT_PROMPT,
    "A portrait of an old fisherman with a grey beard, soft window light, photograph, shallow depth of field",
    "A shop front at night in the rain, a neon sign that reads OPEN, reflections on the street, cinematic",
    "A bright watercolour of a fox reading a book under a tree, flowers, white background",
)


def _quantize(workflow: Workflow, model: Node, prefix: str, recorded: Output | None = None) -> Node:
    wire = {} if recorded is None else {"recorded": recorded}
    node = workflow.add(
        QUANTIZE,
        "SVDQuantQuantizeModel",
        "",
        model=model,
        precision="int4",
        activations="w4a8",
        rank=32,
        method="best",
        filename_prefix=prefix,
        overwrite=False,
        seed=0,
        calibration="none",
        keep_16bit="",
        keep_worst=0,
        format="auto",
        error_limit=0.0,
        **wire,
    )
    node.size = (400, 500)  # with room for its report
    return node


def _show_errors(workflow: Workflow, quantized: Node) -> None:
    plot = workflow.add(QUANTIZE, "PreviewImage", "error of each layer", images=quantized[3])
    plot.size = (400, 240)


def environment_check() -> Workflow:
    workflow = Workflow(
        "environment-check",
        "environment check",
        "Queue this before you download anything: it says which kernels will run on your card, which file of a family "
        "to take, how much memory FLUX.1 needs, and what to repair. It needs no model and takes seconds.",
    )
    check = workflow.add(CHECK, "SVDQuantEnvironmentCheck", "")
    check.size = (1000, 680)
    return workflow


def quantize_flux() -> Workflow:
    note = (
        "Choose **your own** FLUX.1 finetune in *Load Diffusion Model*, in BF16 or FP16: an FP8 file has lost too much "
        "already and is refused. The file is written to **output/diffusion_models/svdq-int4_r32-my-flux.safetensors** "
        "and stands in the list of *Load Model (SVDQuant)* from then on. A second run writes a second file, unless "
        "*overwrite* is on. LoRAs between the loader and *Quantize Model (SVDQuant)* become part of the file. On "
        "RTX 50 set *precision* to **nvfp4**. It takes about 6 GB of GPU memory, and 15 GB of disk until it is done."
    )
    workflow = Workflow(
        "quantize-your-own-flux", "quantize your own FLUX.1", "Makes a 4-bit file of a 16-bit model, and draws.", note
    )
    workflow.below = PROMPT
    quantized = _quantize(workflow, parts.bf16_loader(workflow, files.FLUX_DEV_BF16), "my-flux")
    clip, vae = parts.flux_text_encoders(workflow), parts.vae_loader(workflow)
    positive, negative = parts.flux_prompt(workflow, clip, DEFAULT_PROMPT, 3.5)
    latent = parts.sample(workflow, quantized, positive, negative, parts.empty_latent(workflow))
    parts.save(workflow, parts.decode(workflow, latent, vae), workflow.name)
    _show_errors(workflow, quantized)
    return workflow


def quantize_any_model() -> Workflow:
    note = (
        "Z-Image-Turbo stands here as an example. **Any diffusion model that ComfyUI loads in BF16 or FP16 can be "
        "quantized**, video models too: choose yours in *Load Diffusion Model*, and put its own text encoder, VAE, "
        "latent and sampler settings around it, as in its usual workflow. The node runs the model on noise to find out "
        "about its layers, says what it will do, and writes **output/diffusion_models/svdq-int4_r32-my-model"
        ".safetensors**, which *Load Model (SVDQuant)* lists from then on. The report says which layers stay in 16 "
        "bits and why."
    )
    workflow = Workflow(
        "quantize-any-model", "quantize any model", "Makes a 4-bit file of any 16-bit diffusion model, and draws.", note
    )
    workflow.below = PROMPT
    quantized = _quantize(workflow, parts.bf16_loader(workflow, files.Z_IMAGE_BF16), "my-model")
    clip = workflow.add(
        FILES, "CLIPLoader", "", files.QWEN3_4B, clip_name=files.QWEN3_4B.name, type="lumina2", device="default"
    )
    vae = parts.vae_loader(workflow)
    positive = workflow.add(PROMPT, "CLIPTextEncode", "", clip=clip, text=DEFAULT_PROMPT)
    negative = workflow.add(PROMPT, "ConditioningZeroOut", "", conditioning=positive)
    latent = parts.sample(workflow, quantized, positive, negative, parts.empty_latent(workflow), steps=8)
    parts.save(workflow, parts.decode(workflow, latent, vae), workflow.name)
    _show_errors(workflow, quantized)
    return workflow


def quantize_flux_calibrated() -> Workflow:
    note = (
        "Choose **your own** FLUX.1 finetune, and write **prompts of the kind that you draw**. One run draws the four "
        "prompts while it records what the model's layers see, then quantizes the model with that. The recording is "
        "**output/svdquant_calibration/my-flux.safetensors**, the model "
        "**output/diffusion_models/svdq-int4_r32-my-flux-calibrated.safetensors**: draw with it in *flux.1-dev*.\n\n"
        "More prompts are better. To record more: mute the box *Quantize* (select it, **Ctrl+M**), write other prompts "
        "and run, as often as you like: they add up. Then unmute it and run once more. *take* starts over. "
        "Cancel whenever you like: the next run goes on where quantizing stopped."
    )
    workflow = Workflow(
        "quantize-your-own-flux-calibrated",
        "quantize your own FLUX.1, calibrated",
        "Makes a better 4-bit file of a 16-bit model: it records your prompts first.",
        note,
    )
    dense, clip = parts.bf16_loader(workflow, files.FLUX_DEV_BF16), parts.flux_text_encoders(workflow)
    texts = {}
    for number, text in enumerate(RECORDED_PROMPTS):
        prompt = workflow.add(PROMPT, "PrimitiveStringMultiline", f"prompt {number + 1}", value=text)
        prompt.size = (260, 110)
        texts[f"inputs.input{number}"] = prompt
    prompts = workflow.add(PROMPT, "CreateList", "", **texts)
    prompts.size = (225, 114)
    latent = parts.empty_latent(workflow)
    positive, negative = parts.flux_prompt(workflow, clip, prompts[0], 3.5, RECORD)
    positive.inputs["conditioning"].node.stage = PROMPT
    positive.inputs["conditioning"].node.size = (225, 100)  # its text comes by a wire
    start = workflow.add(
        RECORD, "SVDQuantCalibrationStart", "", model=dense, name="my-flux", take=1, tokens=512, gram_mib=2048
    )
    start.size = (260, 180)
    drawn = workflow.add(
        RECORD,
        "RebatchLatents",
        "",
        latents=parts.sample(workflow, start, positive, negative, latent, stage=RECORD),
        batch_size=len(RECORDED_PROMPTS),  # one batch: the recording is saved once
    )
    saved = workflow.add(RECORD, "SVDQuantCalibrationSave", "", model=start, samples=drawn)
    saved.size = (260, 200)
    quantized = _quantize(workflow, dense, "my-flux-calibrated", saved[1])
    quantized.size = (305, 500)
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
        sampled = parts.sample(workflow, model, positive, negative, latent, title=title)
        pictures.append(parts.decode(workflow, sampled, vae, title))
    compared = workflow.add(
        PICTURE,
        "SVDQuantCompareImages",
        "",
        reference=pictures[0],
        image=pictures[1],
        reference_name="16 bits",
        image_name="4 bits",
        other_size="refuse",
        difference_scale=0.0,
    )
    compared.size = (560, 820)
    parts.save(workflow, compared, workflow.name)
    return workflow


def convert() -> Workflow:
    note = (
        "Reads every SVDQuant form that this pack knows, the folders of older releases included, and writes one file "
        "to **output/diffusion_models**. A LoRA put between the two nodes becomes part of the file, as additional "
        "rank. The same without ComfyUI: **python dev.py convert IN OUT**."
    )
    workflow = Workflow("convert", "convert a model", "Writes an SVDQuant model in another file format.", note)
    loader = parts.svdquant_loader(workflow, files.svdquant_flux("flux.1-dev"))
    export = workflow.add(
        WRITE,
        "SVDQuantExportModel",
        "",
        model=loader,
        format="nunchaku",
        filename_prefix="svdq-my-model",
        overwrite=False,
    )
    export.size = (380, 230)
    return workflow


def _pixart_prompt(workflow: Workflow) -> tuple[Node, Node, Node]:
    clip = workflow.add(FILES, "CLIPLoader", "", files.T5, clip_name=files.T5.name, type="pixart", device="default")
    positive = workflow.add(PROMPT, "CLIPTextEncode", "positive", clip=clip, text=DEFAULT_PROMPT)
    negative = workflow.add(PROMPT, "CLIPTextEncode", "negative", clip=clip, text="")
    size = workflow.add(PROMPT, "EmptyLatentImage", "", width=1024, height=1024, batch_size=1)
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
    return workflow


def pixart_sigma_quantize() -> Workflow:
    note = (
        f"The 4-bit file is written to **output/diffusion_models/{files.PIXART_SVDQUANT.name}**; *pixart-sigma* loads "
        "it."
    )
    workflow = Workflow(
        "pixart-sigma-quantize", "quantize PixArt-Sigma", "Makes a 4-bit file of PixArt-Sigma, and draws.", note
    )
    quantized = _quantize(workflow, parts.bf16_loader(workflow, files.PIXART_BF16), "pixart-sigma")
    _pixart_draw(workflow, quantized)
    _show_errors(workflow, quantized)
    return workflow


def workflows() -> Iterator[Workflow]:
    for describe in (
        environment_check,
        quantize_flux,
        quantize_any_model,
        quantize_flux_calibrated,
        compare_bf16,
        convert,
        pixart_sigma,
        pixart_sigma_quantize,
    ):
        yield describe()
