"""What ComfyUI users do with FLUX: each as a graph on the SVDQuant model and on the full-precision one, same picture.

A row fails when the two differ, and when the feature does nothing.
"""

import comfy.ldm.modules.attention
import comfy.patcher_extension
import pytest
import torch
from feature_graphs import StubStyleModel, control_net, drawn, empty_latent, prompt
from lora_files import diffusers_lora, host_lora
from safetensors.torch import save_file
from sampling import relative_error, rounding

# float32 on the CPU, the same weights, sums in another order over some steps
ORDER = rounding(2e-5)


def negative_prompt(g, model):
    return g.sample(model, prompt(1), prompt(2), cfg=3.5)


def batch_of_four(g, model):
    latent = {"samples": torch.zeros(4, 16, 16, 16), "batch_index": [3, 2, 1, 0]}
    return g.sample(model, latent=latent)[2:3]


def odd_size(g, model):
    return g.sample(model, latent=empty_latent(17, 23))


def two_sizes_in_turn(g, model):
    g.sample(model, latent=empty_latent(20, 12))
    return g.sample(model, latent=empty_latent(12, 20))


def image_to_image(g, model):
    return g.sample(model, latent={"samples": drawn(1, 16, 16, 16)}, denoise=0.6)


def other_samplers(g, model):
    first = g.sample(model, sampler="dpmpp_2m", scheduler="sgm_uniform")
    return first + g.sample(model, sampler="euler_ancestral", scheduler="beta")


def flux_guidance(g, model):
    return g.sample(model, g("FluxGuidance", conditioning=prompt(1), guidance=30.0))


def model_sampling(g, model):
    return g.sample(g("ModelSamplingFlux", model=model, max_shift=2.0, base_shift=1.5, width=512, height=512))


def inpaint_mask(g, model):
    mask = torch.zeros(1, 128, 128)
    mask[:, 32:96, 32:] = 1
    latent = g("SetLatentNoiseMask", samples={"samples": drawn(1, 16, 16, 16)}, mask=mask)
    return g.sample(g("DifferentialDiffusion", model=model, strength=1.0), latent=latent, denoise=0.8)


def regional_masks(g, model):
    left = torch.zeros(1, 128, 128)
    left[..., :64] = 1
    given = {"strength": 1.0, "set_cond_area": "default"}
    halves = [
        g("ConditioningSetMask", conditioning=prompt(seed), mask=mask, **given)
        for seed, mask in ((1, left), (2, 1 - left))
    ]
    return g.sample(model, g("ConditioningCombine", conditioning_1=halves[0], conditioning_2=halves[1]))


def regional_areas(g, model):
    area = {"width": 0.5, "height": 1.0, "y": 0.0, "strength": 1.0}
    halves = [g("ConditioningSetAreaPercentage", conditioning=prompt(s), x=x, **area) for s, x in ((1, 0.0), (2, 0.5))]
    return g.sample(model, g("ConditioningCombine", conditioning_1=halves[0], conditioning_2=halves[1]))


def prompts_over_time(g, model):
    early = g("ConditioningSetTimestepRange", conditioning=prompt(1), start=0.0, end=0.4)
    late = g("ConditioningSetTimestepRange", conditioning=prompt(2, tokens=24), start=0.4, end=1.0)
    return g.sample(model, g("ConditioningCombine", conditioning_1=early, conditioning_2=late))


def controlnet(g, model, singles=True, **limits):
    given = {"strength": 0.7, "start_percent": 0.0, "end_percent": 1.0} | limits
    control = g("SetUnionControlNetType", control_net=control_net(singles), type="depth")
    positive, negative = g.host.call(
        "ControlNetApplyAdvanced",
        positive=prompt(1),
        negative=prompt(2),
        control_net=control,
        image=drawn(1, 16, 16, 16),
        **given,
    )
    return g.sample(model, positive, negative, cfg=2.0)


def controlnet_double_only(g, model):
    return controlnet(g, model, singles=False)


def controlnet_in_part_of_the_steps(g, model):
    return controlnet(g, model, start_percent=0.3, end_percent=0.8)


def attention_patches(g, model):
    """As IP-Adapters for FLUX in the host's own manner: on q, k, v, and on what attention gives."""
    patched = model.clone()

    def on_input(q, k, v, pe=None, attn_mask=None, extra_options=None):
        return {"q": q, "k": k * 1.05, "v": v * (0.9 if extra_options["block_type"] == "double" else 1.1)}

    patched.set_model_patch(on_input, "attn1_patch")
    patched.set_model_patch(lambda out, options: out + 0.1 * out.roll(1, -1), "attn1_output_patch")
    return g.sample(patched)


def block_replacement(g, model):
    """As PuLID and the first-block cache do: around a double and a single block."""
    patched = model.clone()

    def double(args, extra):
        out = extra["original_block"](args)
        return {"img": out["img"] + 0.05 * args["img"], "txt": out["txt"]}

    def single(args, extra):
        return {"img": extra["original_block"](args)["img"] * 1.02}

    patched.set_model_patch_replace(double, "dit", "double_block", 0)
    patched.set_model_patch_replace(single, "dit", "single_block", 0)
    return g.sample(patched)


def after_the_input(g, model):
    patched = model.clone()
    patched.set_model_patch(lambda args: args | {"img": args["img"] * 1.1, "txt": args["txt"].flip(1)}, "post_input")
    return g.sample(patched)


def teacache_style_wrapper(g, model):
    """Skips the network in every other step and repeats its last answer."""
    patched, state = model.clone(), {"count": 0}

    def wrapper(executor, *args, **kwargs):
        state["count"] += 1
        if state["count"] % 2:
            state["last"] = executor(*args, **kwargs)
        return state["last"]

    patched.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, wrapper)
    return g.sample(patched, steps=6)


def model_function_wrapper(g, model):
    patched = model.clone()
    patched.set_model_unet_function_wrapper(
        lambda apply, args: apply(args["input"], args["timestep"], **args["c"]) * 0.97
    )
    return g.sample(patched)


CACHE = {"reuse_threshold": 1.5, "start_percent": 0.1, "end_percent": 0.95, "verbose": False}


def easy_cache(g, model):
    return g.sample(g("EasyCache", model=model, **CACHE), steps=8)


def lazy_cache(g, model):
    return g.sample(g("LazyCache", model=model, **CACHE), steps=8)


def skip_layer_guidance(g, model):
    given = {"double_layers": "0", "single_layers": "0", "scale": 3.0, "rescaling_scale": 0.0}
    return g.sample(g("SkipLayerGuidanceDiT", model=model, start_percent=0.0, end_percent=1.0, **given), cfg=2.0)


def nag(g, model):
    given = {"nag_scale": 5.0, "nag_alpha": 0.5, "nag_tau": 1.5}
    return g.sample(g("NAGuidance", model=model, **given), prompt(1), prompt(2), cfg=2.0)


def cfg_zero_star(g, model):
    return g.sample(g("CFGZeroStar", model=model), prompt(1), prompt(2), cfg=3.0)


def attention_override(g, model):
    """As sage and flash attention nodes do it."""
    patched = model.clone()

    def override(attention, q, k, v, heads, *args, **kwargs):
        return attention(q, k, v * 1.05, heads, *args, **kwargs)

    patched.model_options["transformer_options"]["optimized_attention_override"] = override
    return g.sample(patched)


def kontext(method):
    def run(g, model):
        conditioning = prompt(1)
        for seed, (height, width) in ((3, (16, 12)), (4, (8, 16))):
            reference = {"samples": drawn(1, 16, height, width, seed=seed)}
            conditioning = g("ReferenceLatent", conditioning=conditioning, latent=reference)
        chosen = {"conditioning": conditioning, "reference_latents_method": method}
        return g.sample(model, g("FluxKontextMultiReferenceLatentMethod", **chosen))

    return run


def redux(strength_type):
    def run(g, model):
        styled = g(
            "StyleModelApply",
            conditioning=prompt(1),
            style_model=StubStyleModel(),
            clip_vision_output=drawn(1, 9, 128),
            strength=0.6,
            strength_type=strength_type,
        )
        return g.sample(model, styled)

    return run


def lora_and_schedule(g, model):
    """A LoRA on the model, another as a hook that changes over the steps, on the positive prompt only."""
    folder = g.host.model_folder("loras")
    save_file(diffusers_lora(5), folder / "feature-a.safetensors")
    save_file(host_lora(6), folder / "feature-b.safetensors")
    patched = g("LoraLoaderModelOnly", model=model, lora_name="feature-a.safetensors", strength_model=0.5)
    hooks = g("CreateHookLoraModelOnly", lora_name="feature-b.safetensors", strength_model=0.8)
    keyframes = g("CreateHookKeyframe", strength_mult=0.3, start_percent=0.0)
    keyframes = g("CreateHookKeyframe", strength_mult=1.0, start_percent=0.5, prev_hook_kf=keyframes)
    hooks = g("SetHookKeyframes", hooks=hooks, hook_kf=keyframes)
    positive = g("ConditioningSetProperties", cond_NEW=prompt(1), strength=1.0, set_cond_area="default", hooks=hooks)
    return g.sample(patched, positive, prompt(2), cfg=2.0)


FEATURES = {
    "negative prompt with CFG": negative_prompt,
    "batch of 4": batch_of_four,
    "odd sizes": odd_size,
    "two sizes in turn": two_sizes_in_turn,
    "image to image": image_to_image,
    "multistep and ancestral samplers": other_samplers,
    "FluxGuidance": flux_guidance,
    "ModelSamplingFlux": model_sampling,
    "inpainting with a noise mask, Differential Diffusion": inpaint_mask,
    "regional prompts by masks": regional_masks,
    "regional prompts by areas": regional_areas,
    "prompts over time": prompts_over_time,
    "ControlNet (Union-Pro: double and single blocks)": controlnet,
    "ControlNet (double blocks only)": controlnet_double_only,
    "ControlNet in part of the steps": controlnet_in_part_of_the_steps,
    "attention patches (IP-Adapter)": attention_patches,
    "block replacement (PuLID, first-block cache)": block_replacement,
    "patches after the input (USO)": after_the_input,
    "wrappers around the network (TeaCache)": teacache_style_wrapper,
    "model function wrapper": model_function_wrapper,
    "EasyCache": easy_cache,
    "LazyCache": lazy_cache,
    "Skip Layer Guidance": skip_layer_guidance,
    "Normalized Attention Guidance": nag,
    "CFG-Zero*": cfg_zero_star,
    "attention override (sage, flash)": attention_override,
    "Kontext reference latents, offset": kontext("offset"),
    "Kontext reference latents, index": kontext("index"),
    "Kontext reference latents, uxo/uno": kontext("uxo/uno"),
    "Redux, multiplied": redux("multiply"),
    "Redux, attention bias": redux("attn_bias"),
    "LoRA, and a scheduled LoRA hook on one prompt": lora_and_schedule,
}


@pytest.mark.parametrize("feature", FEATURES)
def test_feature(graphs, ours, dense, feature):
    expected = FEATURES[feature](graphs, dense)
    without = graphs.sample(ours)
    picture = FEATURES[feature](graphs, ours)
    assert picture.isfinite().all()
    assert picture.shape != without.shape or relative_error(picture, without) > 1e-3, "the feature does nothing"
    assert relative_error(picture, expected) < ORDER
    assert torch.equal(graphs.sample(ours), without), "the feature stays on the model"


# feature -> (graph, what the host says to it with a full-precision FLUX.1)
HOST_LACKS = {
    "Kontext reference latents, index_timestep_zero": (kontext("index_timestep_zero"), "broadcast shape"),
}


@pytest.mark.parametrize("feature", HOST_LACKS)
def test_what_the_host_lacks_for_flux(graphs, ours, dense, feature):
    run, words = HOST_LACKS[feature]
    for model in (dense, ours):
        with pytest.raises(RuntimeError, match=words):
            run(graphs, model)
