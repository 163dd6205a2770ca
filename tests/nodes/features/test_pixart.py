"""What ComfyUI users do with PixArt: on the SVDQuant model and the host's own; and what the host lacks for PixArt."""

import comfy.patcher_extension
import pytest
import torch
from feature_graphs import drawn
from pixart_graphs import empty, lora, prompt, sample
from safetensors.torch import save_file
from sampling import relative_error, rounding

ORDER = rounding(2e-5)  # float32 on the CPU, the same weights, sums in another order


@pytest.fixture(scope="module")
def twin_without(graphs, twin):
    return sample(graphs, twin)


@pytest.fixture(scope="module")
def without(graphs, pixart):
    """The picture without any feature."""
    return sample(graphs, pixart)


def with_lora(prefix: str, node: str):
    def run(g, model):
        save_file(lora(prefix), g.host.model_folder("loras") / "pixart.safetensors")
        strength = {"strength": 0.7} if node == "SVDQuantLoraLoader" else {"strength_model": 0.7}
        return sample(g, g(node, model=model, lora_name="pixart.safetensors", **strength))

    return run


def hook(g, model):
    save_file(lora(), g.host.model_folder("loras") / "pixart.safetensors")
    hooks = g("CreateHookLoraModelOnly", lora_name="pixart.safetensors", strength_model=0.8)
    positive = g("ConditioningSetProperties", cond_NEW=prompt(1), strength=1.0, set_cond_area="default", hooks=hooks)
    return sample(g, model, positive, prompt(2), cfg=2.0)


def negative_prompt(g, model):
    return sample(g, model, prompt(1), prompt(2), cfg=4.5)


def batch(g, model):
    return sample(g, model, latent=empty(batch=2) | {"batch_index": [1, 0]})[:1]


def size(g, model):
    return sample(g, model, latent=empty(72, 66))


def two_sizes_in_turn(g, model):
    sample(g, model, latent=empty(72, 64))
    return sample(g, model, latent=empty(64, 72))


def other_samplers(g, model):
    first = sample(g, model, steps=2, sampler="dpmpp_2m", scheduler="sgm_uniform")
    return first + sample(g, model, steps=2, sampler="euler_ancestral", scheduler="beta")


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


def regional_areas(g, model):
    area = {"width": 0.5, "height": 1.0, "y": 0.0, "strength": 1.0}
    halves = [g("ConditioningSetAreaPercentage", conditioning=prompt(s), x=x, **area) for s, x in ((1, 0.0), (2, 0.5))]
    together = g("ConditioningCombine", conditioning_1=halves[0], conditioning_2=halves[1])
    return sample(g, model, together, latent=empty(64, 128))


def prompts_over_time(g, model):
    early = g("ConditioningSetTimestepRange", conditioning=prompt(1), start=0.0, end=0.3)
    late = g("ConditioningSetTimestepRange", conditioning=prompt(2), start=0.3, end=1.0)
    return sample(g, model, g("ConditioningCombine", conditioning_1=early, conditioning_2=late), steps=2)


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
    "two sizes in turn": two_sizes_in_turn,
    "multistep and ancestral samplers": other_samplers,
    "image to image": image_to_image,
    "inpainting with a noise mask, Differential Diffusion": noise_mask,
    "regional prompts by masks": regional,
    "regional prompts by areas": regional_areas,
    "prompts over time": prompts_over_time,
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
