"""Workflows of the other model families, with ComfyUI's own nodes around the loader."""

from collections.abc import Iterator

from . import files, parts
from .graph import ModelFile, Node, Workflow
from .parts import DEFAULT_PROMPT, DRAW, FILES, PICTURE, PROMPT

EDIT = "Replace the sky with a starry night"


def _start(name: str, title: str, summary: str, model: ModelFile, note: str = "") -> tuple[Workflow, Node]:
    workflow = Workflow(name, title, summary, note)
    return workflow, parts.svdquant_loader(workflow, model)


def _text_encoder(workflow: Workflow, file: ModelFile, kind: str) -> Node:
    return workflow.add(FILES, "CLIPLoader", "", file, clip_name=file.name, type=kind, device="default")


def _prompts(workflow: Workflow, clip: Node, text: str = DEFAULT_PROMPT, negative: str | None = None):
    """Positive and negative conditioning; without a negative text it is the positive one zeroed, for cfg 1."""
    positive = workflow.add(PROMPT, "CLIPTextEncode", "" if negative is None else "positive", clip=clip, text=text)
    if negative is None:
        return positive, workflow.add(PROMPT, "ConditioningZeroOut", "", conditioning=positive)
    return positive, workflow.add(PROMPT, "CLIPTextEncode", "negative", clip=clip, text=negative)


def _shift(workflow: Workflow, model: Node, shift: float, stage: str = FILES) -> Node:
    return workflow.add(stage, "ModelSamplingAuraFlow", "", model=model, shift=shift)


def _picture(workflow: Workflow, latent: Node, vae: Node) -> Workflow:
    parts.save(workflow, parts.decode(workflow, latent, vae), workflow.name)
    return workflow


def z_image_turbo() -> Workflow:
    workflow, loader = _start(
        "z-image-turbo",
        "Z-Image-Turbo",
        "Text to picture in 8 steps.",
        files.Z_IMAGE,
        "Use cfg 1: the model knows no other.",
    )
    clip, vae = _text_encoder(workflow, files.QWEN3_4B, "lumina2"), parts.vae_loader(workflow)
    positive, negative = _prompts(workflow, clip)
    model, size = _shift(workflow, loader, 3.0), parts.empty_latent(workflow)
    return _picture(workflow, parts.sample(workflow, model, positive, negative, size, steps=8), vae)


def krea_2_turbo() -> Workflow:
    workflow, loader = _start("krea-2-turbo", "Krea 2 Turbo", "Text to picture in 8 steps.", files.KREA_2)
    clip = _text_encoder(workflow, files.QWEN3VL_4B, "krea2")
    vae = parts.vae_loader(workflow, files.QWEN_IMAGE_VAE)
    positive, negative = _prompts(workflow, clip)
    size = parts.empty_latent(workflow)
    return _picture(workflow, parts.sample(workflow, loader, positive, negative, size, steps=8), vae)


def qwen_image() -> Workflow:
    note = (
        "The Lightning LoRA is part of this file, so 4 steps at cfg 1 are enough. With **svdq-int4_r32-qwen-image** "
        "take 20 steps and cfg 4."
    )
    workflow, loader = _start(
        "qwen-image", "Qwen-Image, Lightning", "Text to picture in 4 steps.", files.QWEN_IMAGE, note
    )
    clip = _text_encoder(workflow, files.QWEN25_VL, "qwen_image")
    vae = parts.vae_loader(workflow, files.QWEN_IMAGE_VAE)
    positive, negative = _prompts(workflow, clip)
    size = parts.empty_latent(workflow, 1328, 1328)
    model = _shift(workflow, loader, 3.1)
    return _picture(workflow, parts.sample(workflow, model, positive, negative, size, steps=4), vae)


def qwen_image_edit() -> Workflow:
    note = (
        "**example.png** comes with ComfyUI; choose a picture of your own. Up to three can be wired to the prompt. "
        "Files of Qwen-Image-Edit and -2509 work in the same graph; ones without Lightning take 20 steps and cfg 4."
    )
    workflow, loader = _start(
        "qwen-image-edit-2511", "Qwen-Image-Edit 2511", "Edits a picture by instruction.", files.QWEN_IMAGE_EDIT, note
    )
    clip = _text_encoder(workflow, files.QWEN25_VL, "qwen_image")
    vae = parts.vae_loader(workflow, files.QWEN_IMAGE_VAE)
    picture = parts.one_megapixel(workflow, parts.load_picture(workflow, "picture to edit"))
    positive = workflow.add(PROMPT, "TextEncodeQwenImageEditPlus", "", clip=clip, vae=vae, image1=picture, prompt=EDIT)
    negative = workflow.add(PROMPT, "ConditioningZeroOut", "", conditioning=positive)
    latent = workflow.add(PROMPT, "VAEEncode", "", pixels=picture, vae=vae)
    model = _shift(workflow, loader, 3.1, DRAW)
    return _picture(workflow, parts.sample(workflow, model, positive, negative, latent, steps=4), vae)


def flux_2_klein() -> Workflow:
    workflow, loader = _start(
        "flux.2-klein",
        "FLUX.2 Klein 9B",
        "Text to picture in 4 steps.",
        files.FLUX_2_KLEIN,
        "Use cfg 1: the model is distilled.",
    )
    clip = _text_encoder(workflow, files.QWEN3_8B, "flux2")
    vae = parts.vae_loader(workflow, files.FLUX_2_VAE)
    positive, negative = _prompts(workflow, clip)
    size = workflow.add(PROMPT, "EmptyFlux2LatentImage", "", width=1024, height=1024, batch_size=1)
    return _picture(workflow, parts.sample(workflow, loader, positive, negative, size, steps=4), vae)


def chroma() -> Workflow:
    workflow, loader = _start("chroma", "Chroma1-HD", "Text to picture with a negative prompt.", files.CHROMA)
    clip = _text_encoder(workflow, files.T5, "chroma")
    vae = parts.vae_loader(workflow)
    positive, negative = _prompts(workflow, clip, negative="low quality, blurry")
    size = parts.empty_latent(workflow)
    sampled = parts.sample(workflow, loader, positive, negative, size, steps=26, cfg=4.0, scheduler="beta")
    return _picture(workflow, sampled, vae)


def sdxl() -> Workflow:
    note = (
        "The 4-bit file holds the UNet alone; text encoders and VAE come from the ordinary checkpoint. LoRAs "
        "for SDXL work in the same graph."
    )
    workflow, loader = _start("sdxl", "SDXL", "Text to picture with 4-bit SDXL.", files.SDXL, note)
    checkpoint = workflow.add(
        FILES, "CheckpointLoaderSimple", "text encoders and VAE", files.SDXL_BASE, ckpt_name=files.SDXL_BASE.name
    )
    positive = workflow.add(PROMPT, "CLIPTextEncode", "positive", clip=checkpoint[1], text=DEFAULT_PROMPT)
    negative = workflow.add(PROMPT, "CLIPTextEncode", "negative", clip=checkpoint[1], text="blurry, low quality")
    size = workflow.add(PROMPT, "EmptyLatentImage", "", width=1024, height=1024, batch_size=1)
    sampled = parts.sample(workflow, loader, positive, negative, size, steps=25, cfg=6.0, scheduler="karras")
    decoded = workflow.add(PICTURE, "VAEDecode", "", samples=sampled, vae=checkpoint[2])
    decoded.size = (225, 56)
    parts.save(workflow, decoded, workflow.name)
    return workflow


def minimax_h3() -> Workflow:
    note = (
        "The 4-bit file holds the quantized layers alone. **second_file** of the loader names the 16-bit model that "
        "the rest comes from. Lengths are 17 k + 5 frames at 24 a second: 124 frames are 5 seconds."
    )
    workflow = Workflow("minimax-h3", "MiniMax H3", "Text to video with sound.", note)
    loader = workflow.add(
        FILES,
        "SVDQuantModelLoader",
        "",
        files.MINIMAX_H3,
        files.MINIMAX_H3_BF16,
        model_name=files.MINIMAX_H3.name,
        compute="auto",
        second_file=files.MINIMAX_H3_BF16.name,
    )
    loader.size = (340, 270)
    clip = _text_encoder(workflow, files.QWEN3VL_32B, "minimax")
    video_vae = parts.vae_loader(workflow, files.MINIMAX_H3_VAE)
    audio_vae = parts.vae_loader(workflow, files.MINIMAX_H3_AUDIO_VAE)
    text = "Waves break below a lighthouse at dusk, seagulls call, the camera pans slowly along the coast"
    positive, negative = _prompts(workflow, clip, text)
    latent = workflow.add(PROMPT, "EmptyMiniMaxH3LatentAV", "", width=1344, height=768, length=124)
    model = workflow.add(DRAW, "MiniMaxH3SigmaShift", "", model=loader, shift_video=12.0, shift_audio=3.0)
    sampled = parts.sample(workflow, model, positive, negative, latent, steps=20)
    apart = workflow.add(PICTURE, "LTXVSeparateAVLatent", "", av_latent=sampled)
    pictures = parts.decode(workflow, apart, video_vae)
    sound = workflow.add(PICTURE, "VAEDecodeAudio", "", samples=apart[1], vae=audio_vae)
    video = workflow.add(PICTURE, "CreateVideo", "", images=pictures, audio=sound, fps=24.0, bit_depth=8)
    workflow.add(
        PICTURE, "SaveVideo", "", video=video, filename_prefix=f"svdquant/{workflow.name}", format="auto", codec="auto"
    )
    return workflow


def workflows() -> Iterator[Workflow]:
    for describe in (z_image_turbo, krea_2_turbo, qwen_image, qwen_image_edit, flux_2_klein, chroma, sdxl, minimax_h3):
        yield describe()
