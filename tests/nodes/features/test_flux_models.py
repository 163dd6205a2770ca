"""FLUX tools (more input channels), compiling, saving and merging: the SVDQuant model beside the full-precision one."""

from pathlib import Path

import pytest
import torch
from feature_graphs import StubVAE, drawn, prompt
from host_models import put_dense, put_tiny
from lora_files import control_lora, diffusers_lora
from safetensors.torch import load_file, save_file
from sampling import relative_error, rounding
from tiny_files import DATA

ORDER = rounding(2e-5)  # float32 on the CPU, the same weights, sums in another order


def wider(host, channels: int) -> list:
    """Both models with as many image channels, times the four pixels of a patch; as (ours, dense)."""
    folder = host.model_folder("diffusion_models")
    weight = (drawn(256, 4 * channels, seed=channels) * 0.1).bfloat16()
    models = []
    for source, key in (
        (DATA / "flux_tiny_int4_r32.safetensors", "x_embedder.weight"),
        (folder / put_dense(folder), "img_in.weight"),
    ):
        tensors = load_file(source)
        tensors[key] = weight.to(tensors[key].dtype).clone()
        save_file(tensors, folder / f"wide-{channels}-{source.name}")
        models.append(f"wide-{channels}-{source.name}")
    ours = host.call("SVDQuantModelLoader", model_name=models[0], compute="w4a16")[0]
    return [ours, host.call("UNETLoader", unet_name=models[1], weight_dtype="default")[0]]


def fill(g):
    """FLUX Fill: the latent, the masked image and the mask."""
    mask = torch.zeros(1, 128, 128)
    mask[:, :64] = 1
    pixels = drawn(1, 128, 128, 3).sigmoid()

    def run(model):
        positive, negative, latent = g.host.call(
            "InpaintModelConditioning",
            positive=prompt(1),
            negative=prompt(2),
            vae=StubVAE(),
            pixels=pixels,
            mask=mask,
            noise_mask=True,
        )
        return g.sample(model, positive, negative, latent, cfg=2.0)

    return [run(model) for model in wider(g.host, 96)]


def control_image(g):
    """FLUX Canny and Depth: a control image beside the latent."""

    def run(model):
        positive, negative, latent = g.host.call(
            "InstructPixToPixConditioning",
            positive=prompt(1),
            negative=prompt(2),
            vae=StubVAE(),
            pixels=drawn(1, 128, 128, 3).sigmoid(),
        )
        return g.sample(model, positive, negative, latent, cfg=2.0)

    return [run(model) for model in wider(g.host, 32)]


def control_image_by_lora(g):
    """The same through the LoRA that widens the image input of the ordinary model."""
    folder = g.host.model_folder("diffusion_models")
    ours = g("SVDQuantModelLoader", model_name=put_tiny(folder), compute="w4a16")
    dense = g("UNETLoader", unet_name=put_dense(folder), weight_dtype="default")
    lora = {key: t for key, t in control_lora(5).items() if not key.endswith(".bias")}  # 16-bit in the 4-bit file
    save_file(lora, g.host.model_folder("loras") / "control.safetensors")
    pictures = []
    for model in (ours, dense):
        given = {
            "positive": prompt(1),
            "negative": prompt(2),
            "vae": StubVAE(),
            "pixels": drawn(1, 128, 128, 3).sigmoid(),
        }
        positive, negative, latent = g.host.call("InstructPixToPixConditioning", **given)
        patched = g("LoraLoaderModelOnly", model=model, lora_name="control.safetensors", strength_model=0.5)
        pictures.append(g.sample(patched, positive, negative, latent, cfg=2.0))
    return pictures


MODELS = {
    "Fill: masked image and mask as input": fill,
    "Canny and Depth: control image as input": control_image,
    "Canny and Depth LoRA, which widens the input": control_image_by_lora,
}


@pytest.mark.parametrize("feature", MODELS)
def test_flux_tools(graphs, ours, feature):
    picture, expected = MODELS[feature](graphs)
    assert picture.isfinite().all()
    assert relative_error(picture, graphs.sample(ours)) > 1e-2
    assert relative_error(picture, expected) < ORDER


def compiled(g, ours, dense):
    """With a LoRA; "eager" runs what the compiler has traced, without generating code."""
    save_file(diffusers_lora(5), g.host.model_folder("loras") / "compiled.safetensors")
    lora = {"lora_name": "compiled.safetensors", "strength_model": 0.5}
    patched, expected = (g("LoraLoaderModelOnly", model=model, **lora) for model in (ours, dense))
    return g.sample(g("TorchCompileModel", model=patched, backend="eager")), g.sample(expected)


def saved(g, ours, dense):
    g.host.call("ModelSave", model=ours, filename_prefix="diffusion_models/feature", prompt=None, extra_pnginfo=None)
    (file,) = (Path(g.host.output) / "diffusion_models").glob("feature_*.safetensors")
    try:
        return g.sample(g("SVDQuantModelLoader", model_name=file.name, compute="w4a16")), g.sample(ours)
    finally:
        file.unlink()


def merged(g, ours, dense):
    half = g("ModelMergeSimple", model1=dense, model2=ours, ratio=0.5)
    return g.sample(half), g.sample(dense)  # both have the same weights, so half of each is the same again


def other_weights_merged(g, ours, dense):
    """Another dense model, half replaced by ours, equals the same merge of two dense ones."""
    name = put_dense(g.host.model_folder("diffusion_models"), "nvfp4")
    other = g("UNETLoader", unet_name=name, weight_dtype="default")
    merge = [g("ModelMergeSimple", model1=other, model2=model, ratio=0.3) for model in (ours, dense)]
    return g.sample(merge[0]), g.sample(merge[1])


WHOLE_MODEL = {
    "TorchCompileModel": compiled,
    "ModelSave, loaded again": saved,
    "merging an SVDQuant model into a BF16 one": merged,
    "merging an SVDQuant model into another BF16 one": other_weights_merged,
}


@pytest.mark.parametrize("feature", WHOLE_MODEL)
def test_whole_model(graphs, ours, dense, feature):
    picture, expected = WHOLE_MODEL[feature](graphs, ours, dense)
    assert picture.isfinite().all()
    assert relative_error(picture, expected) < ORDER


@pytest.mark.parametrize("feature", ["merging into an SVDQuant model: refused with a sentence"])
def test_refused(graphs, ours, dense, feature):
    with pytest.raises(Exception, match="cannot be merged into an SVDQuant model"):
        graphs("ModelMergeSimple", model1=ours, model2=dense, ratio=0.5)
