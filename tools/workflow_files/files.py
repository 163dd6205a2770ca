"""The files that the workflows name, with the folders and pages that users find them under."""

from .graph import ModelFile

HUB = "https://huggingface.co"


def _file(name: str, folder: str, repository: str, path: str = "", gib: float | None = None, **more: bool) -> ModelFile:
    page = f"{HUB}/{repository}"
    return ModelFile(name, folder, f"{page}/resolve/main/{path or name}", page, gib, **more)


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
Z_IMAGE_BF16 = _file(
    "z_image_turbo_bf16.safetensors",
    "diffusion_models",
    "Comfy-Org/z_image_turbo",
    "split_files/diffusion_models/z_image_turbo_bf16.safetensors",
    gib=12.3,
)
PIXART_BF16 = _file(
    "pixart-sigma-xl-2-1024-ms.safetensors",
    "diffusion_models",
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
    "transformer/diffusion_pytorch_model.safetensors",
    gib=2.4,
)
PIXART_SVDQUANT = ModelFile("svdq-int4_r32-pixart-sigma.safetensors", "diffusion_models")
SDXL_VAE = _file("sdxl_vae.safetensors", "vae", "stabilityai/sdxl-vae", gib=0.3)
Z_IMAGE = _file(
    "svdq-int4_r32-z-image-turbo.safetensors", "diffusion_models", "nunchaku-tech/nunchaku-z-image-turbo", gib=3.6
)
KREA_2 = ModelFile(
    "svdq-int4_r32-krea-2-turbo.safetensors",
    "diffusion_models",
    page=f"{HUB}/ModelsLab/Krea-2-Turbo-W4A4-Nunchaku",
    gib=8.0,
    only_int4=True,
)
QWEN_IMAGE = _file(
    "svdq-int4_r32-qwen-image-lightningv1.0-4steps.safetensors",
    "diffusion_models",
    "nunchaku-tech/nunchaku-qwen-image",
    gib=11.5,
)
QWEN_IMAGE_EDIT = ModelFile(
    "nunchaku_qwen_image_edit_2511_balance_int4.safetensors",
    "diffusion_models",
    page=f"{HUB}/QuantFunc/Nunchaku-Qwen-Image-EDIT-2511",
)
FLUX_2_KLEIN = _file(
    "svdq-int4_r32-FLUX.2-klein-9B-Nunchaku.safetensors", "diffusion_models", "tonera/FLUX.2-klein-9B-Nunchaku", gib=5.5
)
CHROMA = ModelFile("svdq-int4_r32-Chroma1-HD.safetensors", "diffusion_models", page=f"{HUB}/tonera", gib=5.4)
SDXL = ModelFile(
    "svdq-int4_r32-sdxl.safetensors", "diffusion_models", page=f"{HUB}/nunchaku-tech", gib=2.6, only_int4=True
)
SDXL_BASE = _file("sd_xl_base_1.0.safetensors", "checkpoints", "stabilityai/stable-diffusion-xl-base-1.0", gib=6.9)
MINIMAX_H3 = _file(
    "svdq-int4_r32-minimax-h3-fl2va.safetensors",
    "diffusion_models",
    "felipesztutman/MiniMax-H3-W4A4",
    "transformer_blocks.safetensors",
    gib=10.6,
    only_int4=True,
)
MINIMAX_H3_BF16 = _file(
    "minimax_h3_fl2va_pruned_bf16.safetensors",
    "diffusion_models",
    "Comfy-Org/MiniMax-H3",
    "diffusion_models/minimax_h3_fl2va_pruned_bf16.safetensors",
    gib=41,
)
MINIMAX_H3_VAE = _file(
    "minimax_h3_video_vae_fp16.safetensors",
    "vae",
    "Comfy-Org/MiniMax-H3",
    "vae/minimax_h3_video_vae_fp16.safetensors",
    gib=5.2,
)
MINIMAX_H3_AUDIO_VAE = _file(
    "minimax_h3_audio_vae_fp32.safetensors",
    "vae",
    "Comfy-Org/MiniMax-H3",
    "vae/minimax_h3_audio_vae_fp32.safetensors",
    gib=0.6,
)
QWEN3VL_32B = _file(
    "qwen3vl_32b_minimax_h3_nvfp4_awq.safetensors",
    "text_encoders",
    "Comfy-Org/MiniMax-H3",
    "text_encoders/qwen3vl_32b_minimax_h3_nvfp4_awq.safetensors",
)
QWEN3_4B = _file(
    "qwen_3_4b.safetensors",
    "text_encoders",
    "Comfy-Org/z_image_turbo",
    "split_files/text_encoders/qwen_3_4b.safetensors",
    gib=8.0,
)
QWEN3_8B = _file(
    "qwen_3_8b_fp8mixed.safetensors",
    "text_encoders",
    "Comfy-Org/vae-text-encorder-for-flux-klein-9b",
    "split_files/text_encoders/qwen_3_8b_fp8mixed.safetensors",
    gib=8.7,
)
QWEN3VL_4B = _file(
    "qwen3vl_4b_fp8_scaled.safetensors",
    "text_encoders",
    "Comfy-Org/Krea-2",
    "text_encoders/qwen3vl_4b_fp8_scaled.safetensors",
    gib=5.2,
)
QWEN25_VL = _file(
    "qwen_2.5_vl_7b_fp8_scaled.safetensors",
    "text_encoders",
    "Comfy-Org/Qwen-Image_ComfyUI",
    "split_files/text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors",
    gib=9.4,
)
QWEN_IMAGE_VAE = _file(
    "qwen_image_vae.safetensors",
    "vae",
    "Comfy-Org/Qwen-Image_ComfyUI",
    "split_files/vae/qwen_image_vae.safetensors",
    gib=0.25,
)
FLUX_2_VAE = _file(
    "flux2-vae.safetensors",
    "vae",
    "Comfy-Org/vae-text-encorder-for-flux-klein-4b",
    "split_files/vae/flux2-vae.safetensors",
    gib=0.3,
)
