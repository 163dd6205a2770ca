"""Workflows that draw with the FLUX.1 models."""

from collections.abc import Iterator

from . import files, parts
from .graph import Node, Workflow
from .parts import DEFAULT_PROMPT, DRAW, FILES, PROMPT

EXAMPLE = "**example.png** comes with ComfyUI; choose a picture of your own in **Load Image**."
CONTROL_NOTE = "The model sees the {what} through its own input channels, so no ControlNet is needed. " + EXAMPLE


def _start(name: str, title: str, summary: str, model: str, note: str = "") -> tuple[Workflow, Node, Node, Node]:
    workflow = Workflow(name, title, summary, note)
    loader = parts.svdquant_loader(workflow, files.svdquant_flux(model))
    clip, vae = parts.flux_text_encoders(workflow), parts.vae_loader(workflow)
    return workflow, loader, clip, vae


def _finish(workflow: Workflow, latent: Node, vae: Node) -> Workflow:
    parts.save(workflow, parts.decode(workflow, latent, vae), workflow.name)
    return workflow


def dev() -> Workflow:
    workflow, loader, clip, vae = _start("flux.1-dev", "FLUX.1 dev", "Text to picture in 20 steps.", "flux.1-dev")
    positive, negative = parts.flux_prompt(workflow, clip, DEFAULT_PROMPT, 3.5)
    latent = parts.sample(workflow, loader, positive, negative, parts.empty_latent(workflow))
    return _finish(workflow, latent, vae)


def schnell() -> Workflow:
    summary = "Text to picture in 4 steps. This model knows no guidance value."
    workflow, loader, clip, vae = _start("flux.1-schnell", "FLUX.1 schnell", summary, "flux.1-schnell")
    positive, negative = parts.flux_prompt(workflow, clip, DEFAULT_PROMPT, None)
    latent = parts.sample(workflow, loader, positive, negative, parts.empty_latent(workflow), steps=4)
    return _finish(workflow, latent, vae)


def kontext() -> Workflow:
    workflow, loader, clip, vae = _start(
        "flux.1-kontext-dev", "FLUX.1 Kontext dev", "Edits a picture by instruction.", "flux.1-kontext-dev", EXAMPLE
    )
    positive, negative = parts.flux_prompt(workflow, clip, "Make it a snowy winter evening", 2.5)
    picture = parts.load_picture(workflow, "picture to edit")
    scaled = workflow.add(PROMPT, "FluxKontextImageScale", "", image=picture)
    latent = workflow.add(PROMPT, "VAEEncode", "", pixels=scaled, vae=vae)
    positive = workflow.add(PROMPT, "ReferenceLatent", "", conditioning=positive, latent=latent)
    return _finish(workflow, parts.sample(workflow, loader, positive, negative, latent), vae)


def fill() -> Workflow:
    note = (
        f"{EXAMPLE} Right-click it, **Open in MaskEditor**, paint over what is to be repainted, save. Without a mask "
        "the whole picture stays as it is."
    )
    workflow, loader, clip, vae = _start(
        "flux.1-fill-dev", "FLUX.1 Fill dev", "Repaints what a mask covers.", "flux.1-fill-dev", note
    )
    positive, negative = parts.flux_prompt(workflow, clip, "A red balloon", 30.0)
    picture = parts.load_picture(workflow, "picture with mask")
    inpaint = workflow.add(
        PROMPT,
        "InpaintModelConditioning",
        "",
        positive=positive,
        negative=negative,
        vae=vae,
        pixels=picture,
        mask=picture[1],
        noise_mask=True,
    )
    model = workflow.add(DRAW, "DifferentialDiffusion", "", model=loader, strength=1.0)
    return _finish(workflow, parts.sample(workflow, model, inpaint[0], inpaint[1], inpaint[2]), vae)


def _control(workflow: Workflow, clip: Node, vae: Node, picture: Node, *, text: str, guidance: float) -> Node:
    positive, negative = parts.flux_prompt(workflow, clip, text, guidance)
    return workflow.add(
        PROMPT,
        "InstructPixToPixConditioning",
        "",
        positive=positive,
        negative=negative,
        vae=vae,
        pixels=picture,
    )


def canny() -> Workflow:
    note = CONTROL_NOTE.format(what="edges")
    workflow, loader, clip, vae = _start(
        "flux.1-canny-dev", "FLUX.1 Canny dev", "Draws along the edges of a picture.", "flux.1-canny-dev", note
    )
    picture = parts.one_megapixel(workflow, parts.load_picture(workflow, "picture for the edges"))
    edges = workflow.add(PROMPT, "Canny", "", image=picture, low_threshold=0.15, high_threshold=0.3)
    control = _control(workflow, clip, vae, edges, text=DEFAULT_PROMPT, guidance=30.0)
    workflow.add(PROMPT, "PreviewImage", "edges", images=edges)
    return _finish(workflow, parts.sample(workflow, loader, control[0], control[1], control[2]), vae)


def depth() -> Workflow:
    note = CONTROL_NOTE.format(what="depth map") + (
        " It must be a **depth map** (near is bright). ComfyUI itself makes none; preprocessor packs such as "
        "comfyui_controlnet_aux do."
    )
    workflow, loader, clip, vae = _start(
        "flux.1-depth-dev", "FLUX.1 Depth dev", "Draws with the depth of another picture.", "flux.1-depth-dev", note
    )
    picture = parts.one_megapixel(workflow, parts.load_picture(workflow, "depth map"))
    control = _control(workflow, clip, vae, picture, text=DEFAULT_PROMPT, guidance=10.0)
    return _finish(workflow, parts.sample(workflow, loader, control[0], control[1], control[2]), vae)


def redux() -> Workflow:
    workflow, loader, clip, vae = _start(
        "flux.1-redux-dev", "FLUX.1 Redux", "Variations of a picture, with FLUX.1 dev.", "flux.1-dev", EXAMPLE
    )
    vision = workflow.add(FILES, "CLIPVisionLoader", "", files.SIGCLIP, clip_name=files.SIGCLIP.name)
    style = workflow.add(FILES, "StyleModelLoader", "", files.REDUX, style_model_name=files.REDUX.name)
    positive, negative = parts.flux_prompt(workflow, clip, "", 3.5)
    positive.inputs["conditioning"].node.size = (340, 120)
    picture = parts.load_picture(workflow, "picture to vary")
    seen = workflow.add(PROMPT, "CLIPVisionEncode", "", clip_vision=vision, image=picture, crop="center")
    styled = workflow.add(
        PROMPT,
        "StyleModelApply",
        "",
        conditioning=positive,
        style_model=style,
        clip_vision_output=seen,
        strength=1.0,
        strength_type="multiply",
    )
    latent = parts.sample(workflow, loader, styled, negative, parts.empty_latent(workflow))
    return _finish(workflow, latent, vae)


def controlnet() -> Workflow:
    note = (
        f"The ordinary ControlNet nodes work as they are. {EXAMPLE} For depth or pose, load a map of that kind and "
        "take **Detect Edges (Canny)** out. The middle of the picture is used: set width and height to its shape."
    )
    workflow, loader, clip, vae = _start(
        "flux.1-dev-controlnet", "FLUX.1 dev with ControlNet", "Text and edges to picture.", "flux.1-dev", note
    )
    net = workflow.add(FILES, "ControlNetLoader", "", files.CONTROLNET, control_net_name=files.CONTROLNET.name)
    positive, negative = parts.flux_prompt(workflow, clip, DEFAULT_PROMPT, 3.5)
    picture = parts.one_megapixel(workflow, parts.load_picture(workflow, "picture for the edges"))
    edges = workflow.add(PROMPT, "Canny", "", image=picture, low_threshold=0.15, high_threshold=0.3)
    control = workflow.add(
        PROMPT,
        "ControlNetApplyAdvanced",
        "",
        positive=positive,
        negative=negative,
        control_net=net,
        image=edges,
        strength=0.7,
        start_percent=0.0,
        end_percent=0.8,
        vae=vae,
    )
    latent = parts.empty_latent(workflow)
    return _finish(workflow, parts.sample(workflow, loader, control[0], control[1], latent), vae)


def lora_stack() -> Workflow:
    note = (
        "Any LoRA for FLUX.1 dev works; choose yours in the rows, or switch a row off. Changing a strength does not "
        "reload the model. ComfyUI's own **Load LoRA** works as well; this node adds the report of what matched. "
        "The turbo LoRA is what allows 8 steps: without it take 20."
    )
    workflow, loader, clip, vae = _start(
        "flux.1-dev-lora-stack", "FLUX.1 dev with LoRAs", "Two LoRAs, 8 steps.", "flux.1-dev", note
    )
    rows: dict[str, object] = {"loras": "2"}
    for row, file in enumerate((files.TURBO_LORA, files.GHIBSKY_LORA), start=1):
        rows |= {f"loras.on_{row}": True, f"loras.lora_{row}": file.name, f"loras.strength_{row}": 1.0}
    both = (files.TURBO_LORA, files.GHIBSKY_LORA)
    stack = workflow.add(FILES, "SVDQuantLoraStack", "", *both, model=loader, **rows)
    stack.size = (390, 230)  # the page draws a row on one line, and the report below
    text = "GHIBSKY style, cosy mountain village under a starry sky"
    positive, negative = parts.flux_prompt(workflow, clip, text, 3.5)
    latent = parts.sample(workflow, stack, positive, negative, parts.empty_latent(workflow), steps=8)
    return _finish(workflow, latent, vae)


def workflows() -> Iterator[Workflow]:
    for describe in (dev, schnell, kontext, fill, canny, depth, redux, controlnet, lora_stack):
        yield describe()
