"""The parts that the workflows share: loaders, prompt, sampler, picture."""

from . import files
from .graph import ModelFile, Node, Output, Workflow

FILES, PROMPT, DRAW, PICTURE = "Model files", "What to draw", "Draw", "Picture"
DEFAULT_PROMPT = (
    "A lighthouse on a rocky coast at dusk, warm light in its window, waves breaking below, soft clouds, painted in oil"
)


def svdquant_loader(workflow: Workflow, file: ModelFile) -> Node:
    return workflow.add(FILES, "SVDQuantModelLoader", "4-bit model", file, model_name=file.name, compute="auto")


def bf16_loader(workflow: Workflow, file: ModelFile) -> Node:
    return workflow.add(FILES, "UNETLoader", "16-bit model", file, unet_name=file.name, weight_dtype="default")


def show_text(workflow: Workflow, stage: str, title: str, source: Output, size: tuple[int, int] | None = None) -> Node:
    """Show a text; size: width and height of the node where the text is longer than a few lines."""
    node = workflow.add(stage, "PreviewAny", title, source=source)
    node.size = size
    return node


def flux_text_encoders(workflow: Workflow) -> Node:
    return workflow.add(
        FILES,
        "DualCLIPLoader",
        "Text encoders",
        files.CLIP_L,
        files.T5,
        clip_name1=files.CLIP_L.name,
        clip_name2=files.T5.name,
        type="flux",
        device="default",
    )


def vae_loader(workflow: Workflow, file: ModelFile = files.FLUX_VAE) -> Node:
    return workflow.add(FILES, "VAELoader", "VAE", file, vae_name=file.name)


def flux_prompt(workflow: Workflow, clip: Node, text: str, guidance: float | None) -> tuple[Node, Node]:
    """Positive and negative conditioning; FLUX at cfg 1 needs no negative text, so it is the positive one zeroed."""
    positive = workflow.add(PROMPT, "CLIPTextEncode", "Prompt", clip=clip, text=text)
    negative = workflow.add(PROMPT, "ConditioningZeroOut", "No negative prompt", conditioning=positive)
    if guidance is not None:
        positive = workflow.add(PROMPT, "FluxGuidance", "Guidance", conditioning=positive, guidance=guidance)
    return positive, negative


def empty_latent(workflow: Workflow, width: int = 1024, height: int = 1024) -> Node:
    return workflow.add(PROMPT, "EmptySD3LatentImage", "Size", width=width, height=height, batch_size=1)


def load_picture(workflow: Workflow, title: str, stage: str = PROMPT) -> Node:
    return workflow.add(stage, "LoadImage", title, image="example.png")


def one_megapixel(workflow: Workflow, picture: Node) -> Node:
    return workflow.add(
        PROMPT,
        "ImageScaleToTotalPixels",
        "About one megapixel",
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
    steps: int = 20,
    title: str = "Sampler",
    cfg: float = 1.0,
    scheduler: str = "simple",
) -> Node:
    return workflow.add(
        DRAW,
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


def decode(workflow: Workflow, latent: Node, vae: Node, title: str = "Decode") -> Node:
    return workflow.add(PICTURE, "VAEDecode", title, samples=latent, vae=vae)


def save(workflow: Workflow, picture: Node, prefix: str, title: str = "Save picture") -> Node:
    return workflow.add(PICTURE, "SaveImage", title, images=picture, filename_prefix=f"svdquant/{prefix}")
