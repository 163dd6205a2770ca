"""The files that the workflows name, with the folders and pages that users find them under."""

from .graph import ModelFile

HUB = "https://huggingface.co"


def _file(
    name: str, folder: str, repository: str, path: str = "", gib: float | None = None, gated: bool = False
) -> ModelFile:
    page = f"{HUB}/{repository}"
    return ModelFile(name, folder, f"{page}/resolve/main/{path or name}", page, gib, gated)


def svdquant_flux(model: str) -> ModelFile:
    """A published SVDQuant file of a FLUX.1 model, e.g. "flux.1-dev": int4, rank 32."""
    name = f"svdq-int4_r32-{model}.safetensors"
    return _file(name, "diffusion_models", f"nunchaku-tech/nunchaku-{model}", gib=6.8)


CLIP_L = _file("clip_l.safetensors", "text_encoders", "comfyanonymous/flux_text_encoders", gib=0.25)
T5 = _file("t5xxl_fp8_e4m3fn_scaled.safetensors", "text_encoders", "comfyanonymous/flux_text_encoders", gib=5.2)
FLUX_VAE = _file(
    "ae.safetensors",
    "vae",
    "Comfy-Org/Lumina_Image_2.0_Repackaged",
    "split_files/vae/ae.safetensors",
    gib=0.3,
)
SIGCLIP = _file("sigclip_vision_patch14_384.safetensors", "clip_vision", "Comfy-Org/sigclip_vision_384", gib=0.9)
REDUX = _file("flux1-redux-dev.safetensors", "style_models", "black-forest-labs/FLUX.1-Redux-dev", gib=0.1, gated=True)
CONTROLNET = _file(
    "FLUX.1-dev-ControlNet-Union-Pro-2.0.safetensors",
    "controlnet",
    "Shakker-Labs/FLUX.1-dev-ControlNet-Union-Pro-2.0",
    "diffusion_pytorch_model.safetensors",
    gib=4.3,
)
TURBO_LORA = _file(
    "flux.1-turbo-alpha.safetensors",
    "loras",
    "alimama-creative/FLUX.1-Turbo-Alpha",
    "diffusion_pytorch_model.safetensors",
    gib=0.7,
)
GHIBSKY_LORA = _file(
    "flux.1-ghibsky.safetensors", "loras", "aleksa-codes/flux-ghibsky-illustration", "lora.safetensors", gib=0.1
)
FLUX_DEV_BF16 = _file("flux1-dev.safetensors", "diffusion_models", "black-forest-labs/FLUX.1-dev", gib=23.8, gated=True)
PIXART_BF16 = _file(
    "pixart-sigma-xl-2-1024-ms.safetensors",
    "diffusion_models",
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
    "transformer/diffusion_pytorch_model.safetensors",
    gib=2.4,
)
PIXART_SVDQUANT = ModelFile("svdq-int4_r32-pixart-sigma.safetensors", "diffusion_models")
SDXL_VAE = _file("sdxl_vae.safetensors", "vae", "stabilityai/sdxl-vae", gib=0.3)
