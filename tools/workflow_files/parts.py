"""The parts that the workflows share: loaders, prompt, sampler, picture."""

from . import files
from .graph import ModelFile, Node, Output, Workflow

FILES, PROMPT, DRAW, PICTURE = "Model files", "What to draw", "Draw", "Picture"
DEFAULT_PROMPT = (
    "A lighthouse on a rocky coast at dusk, warm light in its window, waves breaking below, soft clouds, painted in oil"
)


def svdquant_loader(workflow: Workflow, file: ModelFile) -> Node:
    node = workflow.add(FILES, "SVDQuantModelLoader", "", file, model_name=file.name, compute="auto")
    node.size = (340, 250)  # with room for what it says after a run
    return node


def bf16_loader(workflow: Workflow, file: ModelFile) -> Node:
    return workflow.add(FILES, "UNETLoader", "", file, unet_name=file.name, weight_dtype="default")


def flux_text_encoders(workflow: Workflow) -> Node:
    return workflow.add(
        FILES,
        "DualCLIPLoader",
        "",
        files.CLIP_L,
        files.T5,
        clip_name1=files.CLIP_L.name,
        clip_name2=files.T5.name,
        type="flux",
        device="default",
    )


def vae_loader(workflow: Workflow, file: ModelFile = files.FLUX_VAE) -> Node:
    return workflow.add(FILES, "VAELoader", "", file, vae_name=file.name)


def flux_prompt(
    workflow: Workflow, clip: Node, text: str | Output, guidance: float | None, stage: str = PROMPT
) -> tuple[Node, Node]:
    """Positive and negative conditioning; FLUX at cfg 1 needs no negative text, so it is the positive one zeroed."""
    positive = workflow.add(stage, "CLIPTextEncode", "", clip=clip, text=text)
    negative = workflow.add(stage, "ConditioningZeroOut", "", conditioning=positive)
    if guidance is not None:
        positive = workflow.add(stage, "FluxGuidance", "", conditioning=positive, guidance=guidance)
    return positive, negative


def empty_latent(workflow: Workflow, width: int = 1024, height: int = 1024) -> Node:
    return workflow.add(PROMPT, "EmptySD3LatentImage", "", width=width, height=height, batch_size=1)


def load_picture(workflow: Workflow, title: str, stage: str = PROMPT) -> Node:
    return workflow.add(stage, "LoadImage", title, image="example.png")


def one_megapixel(workflow: Workflow, picture: Node) -> Node:
    return workflow.add(
        PROMPT,
        "ImageScaleToTotalPixels",
        "",
        image=picture,
        upscale_method="lanczos",
        megapixels=1.0,
        resolution_steps=16,
    )


def sample(
    workflow: Workflow,
    model: Node,
    positive: Node | Output,
    negative: Node | Output,
    latent: Node | Output,
    *,
    steps: int = 20,
    title: str = "",
    cfg: float = 1.0,
    scheduler: str = "simple",
    stage: str = DRAW,
) -> Node:
    return workflow.add(
        stage,
        "KSampler",
        title,
        model=model,
        seed=42,
        steps=steps,
        cfg=cfg,
        sampler_name="euler",
        scheduler=scheduler,
        positive=positive,
        negative=negative,
        latent_image=latent,
        denoise=1.0,
    )


def decode(workflow: Workflow, latent: Node, vae: Node, title: str = "") -> Node:
    node = workflow.add(PICTURE, "VAEDecode", title, samples=latent, vae=vae)
    node.size = (225, 56)
    return node


def save(workflow: Workflow, picture: Node, prefix: str, title: str = "") -> Node:
    return workflow.add(PICTURE, "SaveImage", title, images=picture, filename_prefix=f"svdquant/{prefix}")
