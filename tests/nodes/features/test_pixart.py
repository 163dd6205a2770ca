"""What ComfyUI users do with PixArt: on the SVDQuant model and the host's own; and what the host lacks for PixArt."""

import comfy.patcher_extension
import pytest
import torch
from feature_graphs import drawn
from host_models import put_pixart
from safetensors.torch import save_file
from sampling import relative_error, rounding

from svdquant_pack.nodes.host.bake import patched_weight
from svdquant_pack.svdq_core.linear import dense_bias, dense_weight

ORDER = rounding(2e-5)  # float32 on the CPU, the same weights, sums in another order


def prompt(seed: int) -> list:
    return [[torch.randn(1, 8, 4096, generator=torch.Generator().manual_seed(seed)), {}]]


def empty(height: int = 64, width: int = 64, batch: int = 1) -> dict:
    return {"samples": torch.zeros(batch, 4, height, width)}


@pytest.fixture(scope="module")
def pixart(host):
    """An SVDQuant PixArt, made by the node from random weights."""
    (dense,) = host.call(
        "UNETLoader", unet_name=put_pixart(host.model_folder("diffusion_models")), weight_dtype="default"
    )
    settings = {"precision": "int4", "activations": "w4a8", "rank": 16, "method": "fast", "seed": 0, "overwrite": True}
    _, path, *_ = host.call("SVDQuantQuantizeModel", model=dense, filename_prefix="pixart-features", **settings)
    name = path.rpartition("/")[2].rpartition("\\")[2]
    return host.call("SVDQuantModelLoader", model_name=name, compute="w4a16")[0]


@pytest.fixture(scope="module")
def twin(host, pixart):
    """The host's own model of exactly the weights that the SVDQuant one stands for."""
    tensors = {}
    layers = {
        key.removeprefix("diffusion_model.").removesuffix(".weight"): m for key, m in pixart.svdquant_layers().items()
    }
    for name, module in layers.items():
        layer = module.layer_on(torch.device("cpu"))
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = dense_weight(layer), dense_bias(layer)
    for name in pixart.model.diffusion_model.state_dict():
        tensors.setdefault(name, patched_weight(pixart, f"diffusion_model.{name}").float())
    tensors["pos_embed"] = torch.zeros(1, 64 * 64, 1)  # its length sets the model's scale
    save_file(
        {k: t.float().contiguous() for k, t in tensors.items()},
        host.model_folder("diffusion_models") / "twin.safetensors",
    )
    return host.call("UNETLoader", unet_name="twin.safetensors", weight_dtype="default")[0]


@pytest.fixture(scope="module")
def twin_without(graphs, twin):
    return sample(graphs, twin)


@pytest.fixture(scope="module")
def without(graphs, pixart):
    """The picture without any feature."""
    return sample(graphs, pixart)


def sample(g, model, positive=None, negative=None, latent=None, cfg=1.0, **settings):
    return g.sample(
        model, positive or prompt(1), negative or prompt(1), latent or empty(), cfg=cfg, steps=1, **settings
    )


def lora(layers: dict, prefix: str) -> dict:
    file = {}
    for i, (name, (outputs, inputs)) in enumerate(layers.items()):
        file[f"{prefix}{name}.lora_A.weight"] = drawn(4, inputs, seed=i) * 0.05
        file[f"{prefix}{name}.lora_B.weight"] = drawn(outputs, 4, seed=i + 50) * 0.3
    return file


LAYERS = {
    "transformer_blocks.0.attn1.to_q": (1152, 1152),
    "transformer_blocks.0.attn1.to_v": (1152, 1152),
    "transformer_blocks.0.attn2.to_q": (1152, 1152),
    "transformer_blocks.0.attn2.to_k": (1152, 1152),  # not quantized
    "transformer_blocks.0.attn2.to_out.0": (1152, 1152),
    "transformer_blocks.0.ff.net.0.proj": (4608, 1152),
    "transformer_blocks.0.ff.net.2": (1152, 4608),
}


def with_lora(prefix: str, node: str):
    def run(g, model):
        save_file(lora(LAYERS, prefix), g.host.model_folder("loras") / "pixart.safetensors")
        strength = {"strength": 0.7} if node == "SVDQuantLoraLoader" else {"strength_model": 0.7}
        return sample(g, g(node, model=model, lora_name="pixart.safetensors", **strength))

    return run


def hook(g, model):
    save_file(lora(LAYERS, "transformer."), g.host.model_folder("loras") / "pixart.safetensors")
    hooks = g("CreateHookLoraModelOnly", lora_name="pixart.safetensors", strength_model=0.8)
    positive = g("ConditioningSetProperties", cond_NEW=prompt(1), strength=1.0, set_cond_area="default", hooks=hooks)
    return sample(g, model, positive, prompt(2), cfg=2.0)


def negative_prompt(g, model):
    return sample(g, model, prompt(1), prompt(2), cfg=4.5)


def batch(g, model):
    return sample(g, model, latent=empty(batch=2) | {"batch_index": [1, 0]})[:1]


def size(g, model):
    return sample(g, model, latent=empty(72, 66))


def image_to_image(g, model):
    return sample(g, model, latent={"samples": 100 * drawn(1, 4, 64, 64)}, denoise=0.3)


def noise_mask(g, model):
    mask = torch.zeros(1, 512, 512)
    mask[:, :256] = 1
    latent = g("SetLatentNoiseMask", samples={"samples": drawn(1, 4, 64, 64)}, mask=mask)
    return sample(g, model, latent=latent)


def regional(g, model):
    left = torch.zeros(1, 512, 512)
    left[..., :256] = 1
    given = {"strength": 1.0, "set_cond_area": "default"}
    halves = [g("ConditioningSetMask", conditioning=prompt(s), mask=m, **given) for s, m in ((1, left), (2, 1 - left))]
    return sample(g, model, g("ConditioningCombine", conditioning_1=halves[0], conditioning_2=halves[1]))


def function_wrapper(g, model):
    patched = model.clone()
    patched.set_model_unet_function_wrapper(
        lambda apply, args: apply(args["input"], args["timestep"], **args["c"]) * 0.9
    )
    return sample(g, patched)


def lazy_cache(g, model):
    given = {"reuse_threshold": 2.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False}
    return g.sample(g("LazyCache", model=model, **given), prompt(1), prompt(1), empty(), steps=4)


FEATURES = {
    "negative prompt with CFG": negative_prompt,
    "batch of 4": batch,
    "odd sizes": size,
    "image to image": image_to_image,
    "inpainting with a noise mask, Differential Diffusion": noise_mask,
    "regional prompts by masks": regional,
    "model function wrapper": function_wrapper,
    "LazyCache": lazy_cache,
    "LoRA, stock loader": with_lora("transformer.", "LoraLoaderModelOnly"),
    "LoRA, PEFT names": with_lora("base_model.model.", "SVDQuantLoraLoader"),
    "LoRA, and a scheduled LoRA hook on one prompt": hook,
}


@pytest.mark.parametrize("feature", FEATURES)
def test_feature(graphs, pixart, twin, without, feature):
    expected = FEATURES[feature](graphs, twin)
    picture = FEATURES[feature](graphs, pixart)
    assert picture.isfinite().all()
    assert picture.shape != without.shape or relative_error(picture, without) > 1e-3, "the feature does nothing"
    assert relative_error(picture, expected) < ORDER
    assert torch.equal(sample(graphs, pixart), without), "the feature stays on the model"


# What the host's PixArt never looks at: the host's own full-precision model gives the same picture with and without.


def attention_patch(model):
    model.set_model_patch(lambda q, k, v, **_: {"q": q, "k": k, "v": v * 2}, "attn1_patch")


def block_replacement(model):
    model.set_model_patch_replace(lambda args, extra: {"img": args["img"]}, "dit", "double_block", 0)


def network_wrapper(model):
    wrapper = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
    model.add_wrapper(wrapper, lambda executor, *args, **kwargs: executor(*args, **kwargs) * 2)


def attention_override(model):
    override = lambda attention, q, k, v, *args, **kwargs: attention(q, k, v * 2, *args, **kwargs)  # noqa: E731
    model.model_options["transformer_options"]["optimized_attention_override"] = override


HOST_LACKS = {
    "attention patches (IP-Adapter)": attention_patch,
    "block replacement (PuLID, first-block cache)": block_replacement,
    "wrappers around the network (TeaCache)": network_wrapper,
    "attention override (sage, flash)": attention_override,
}


@pytest.mark.parametrize("feature", HOST_LACKS)
def test_what_the_host_lacks_for_pixart(graphs, pixart, twin, without, twin_without, feature):
    for model, expected in ((twin, twin_without), (pixart, without)):
        patched = model.clone()
        HOST_LACKS[feature](patched)
        assert torch.equal(sample(graphs, patched), expected)


@pytest.mark.parametrize("feature", ["ControlNet (Union-Pro: double and single blocks)"])
def test_controlnet_is_what_the_host_lacks_for_pixart(graphs, pixart, twin, without, twin_without, feature):
    import comfy.controlnet

    class Residuals(comfy.controlnet.ControlBase):
        def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
            return {"input": [torch.ones(1, 4, 1152)] * 40, "output": [torch.ones(1, 4, 1152)] * 40}

        def get_models(self):
            return []

        def copy(self):
            return Residuals()

    for model, expected in ((twin, twin_without), (pixart, without)):
        positive = [[prompt(1)[0][0], {"control": Residuals(), "control_apply_to_uncond": True}]]
        assert torch.equal(sample(graphs, model, positive), expected)
