"""cuDNN's attention for our MODELs: which calls it gets, which stay the host's, and what takes it away again.

Without a GPU the switch that decides for cuDNN is turned by hand, and the CPU's types and lengths are let through; what
is asked for then goes through torch's own choice of back ends, as on a GPU.
"""

import comfy.ldm.flux.math
import comfy.ldm.modules.attention as host_attention
import comfy.ldm.pixart.pixartms
import comfy.ops
import pytest
import torch
from host_models import put_dense, put_tiny
from sampling import relative_error, rounding, sample_flux

from svdquant_pack.nodes.host import attention
from svdquant_pack.nodes.host.attention import OVERRIDE, attend, choose_attention, why_not_cudnn
from svdquant_pack.nodes.host.model.build import load_model, load_model_with_status

SDPA = host_attention.attention_pytorch


@pytest.fixture
def asked(monkeypatch):
    """The shapes of all queries that cuDNN is asked for, on a machine that counts as one where it is faster."""
    found = []
    first = attention.cudnn_first

    def spy(q, k, v, **extra):
        found.append(tuple(q.shape))
        return first(q, k, v, **extra)

    monkeypatch.setattr(attention, "cudnn_first", spy)
    monkeypatch.setattr(attention, "why_not_cudnn", lambda device: None)
    monkeypatch.setattr(attention, "prefers_cudnn_attention", lambda device: True)
    monkeypatch.setattr(attention, "DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(attention, "DTYPES", (torch.float32, torch.bfloat16))
    monkeypatch.setattr(attention, "LEAST_TOKENS", 16)
    monkeypatch.setattr(attention, "_refused", set())
    monkeypatch.setattr(comfy.ldm.flux.math, "optimized_attention", SDPA)  # what it is on NVIDIA; the CPU has its own
    return found


def draw(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape).to(dtype)


def call(q, k, v, heads=4, **more):
    """The host's attention as a model calls it, with our override among its options."""
    return SDPA(q, k, v, heads, transformer_options={OVERRIDE: attend}, **more)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("joined", [False, True])
def test_the_same_numbers_in_the_same_layout(asked, split, joined):
    shape = (2, 4, 40, 64) if split else (2, 40, 256)
    q, k, v = (draw(*shape, dtype=torch.float32) for _ in range(3))
    options = {"skip_reshape": split, "skip_output_reshape": not joined, "scale": 0.3}
    out, expected = call(q, k, v, **options), SDPA(q, k, v, 4, **options)
    assert asked == [(2, 4, 40, 64)]
    torch.testing.assert_close(out, expected)


CALLS = {
    "mask": {"mask": torch.zeros(40, 40)},
    "head of 65 channels": {"q": (1, 4, 40, 65), "k": (1, 4, 40, 65)},
    "head of 264 channels": {"q": (1, 4, 40, 264), "k": (1, 4, 40, 264)},
    "short": {"q": (1, 4, 8, 64)},
    "few keys": {"k": (1, 4, 8, 64)},
    "float64": {"dtype": torch.float64},
    "an option that we do not know": {"some_new_option": 1},
}


@pytest.mark.parametrize("case", CALLS)
def test_other_calls_are_the_hosts(asked, case):
    given = dict(CALLS[case])
    dtype, q, k = given.pop("dtype", torch.float32), given.pop("q", (1, 4, 40, 64)), given.pop("k", (1, 4, 40, 64))
    q, k, v = draw(*q, dtype=dtype), draw(*k, dtype=dtype), draw(*k, dtype=dtype)
    assert torch.equal(call(q, k, v, skip_reshape=True, **given), SDPA(q, k, v, 4, skip_reshape=True, **given))
    assert asked == []


def test_fewer_heads_of_keys(asked):
    q, k, v = (draw(1, heads, 40, 64, dtype=torch.float32) for heads in (4, 2, 2))
    options = {"skip_reshape": True, "enable_gqa": True}
    torch.testing.assert_close(call(q, k, v, **options), SDPA(q, k, v, 4, **options))
    assert asked == [(1, 4, 40, 64)]


def test_what_cudnn_cannot_do_is_computed_by_the_host_and_not_tried_again(asked, monkeypatch):
    tried = []

    def fail(q, k, v, **extra):
        tried.append(tuple(q.shape))
        raise RuntimeError("cuDNN Frontend error: No execution plans support the graph.")

    monkeypatch.setattr(attention, "cudnn_first", fail)
    q, k, v = (draw(1, 40, 256) for _ in range(3))
    expected = SDPA(q, k, v, 4)
    assert torch.equal(call(q, k, v), expected) and torch.equal(call(q, k, v), expected)
    assert tried == [(1, 4, 40, 64)]
    call(*(draw(1, 48, 256) for _ in range(3)))
    assert tried == [(1, 4, 40, 64), (1, 4, 48, 64)]  # another size is another question


def test_refused_sizes_are_forgotten_before_they_are_many(asked, monkeypatch):
    def fail(q, k, v, **extra):
        raise RuntimeError("cuDNN Frontend error: No execution plans support the graph.")

    monkeypatch.setattr(attention, "cudnn_first", fail)
    monkeypatch.setattr(attention, "MOST_REFUSED", 3)
    for tokens in range(32, 72, 4):
        call(*(draw(1, tokens, 256) for _ in range(3)))
        assert 1 <= len(attention._refused) <= 3


def test_a_lack_of_memory_is_not_taken_for_that(asked, monkeypatch):
    def fail(q, k, v, **extra):
        raise torch.cuda.OutOfMemoryError("full")

    monkeypatch.setattr(attention, "cudnn_first", fail)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        call(*(draw(1, 40, 256) for _ in range(3)))
    assert not attention._refused


def test_an_attention_that_the_user_chose_is_left_alone(asked):
    chosen = host_attention.attention_basic  # as --use-sage-attention and others put in the place of torch's
    q, k, v = (draw(1, 40, 256, dtype=torch.float32) for _ in range(3))
    out = chosen(q, k, v, 4, transformer_options={OVERRIDE: attend})
    assert torch.equal(out, chosen(q, k, v, 4)) and asked == []


def test_in_a_picture(host, path, asked):
    model, status = load_model_with_status(str(path), "w4a16")
    assert "attention cuDNN" in status
    picture = sample_flux(model)
    flux = model.model.diffusion_model
    assert len(asked) == 4 * (len(flux.double_blocks) + len(flux.single_blocks))  # four steps; with cfg 1 one run each
    plain, words = load_model_with_status(str(path), "w4a16", attention="comfyui")
    assert "attention as ComfyUI chooses (chosen by the user)" in words
    assert OVERRIDE not in plain.model_options["transformer_options"]
    del asked[:]
    assert relative_error(picture, sample_flux(plain)) < rounding(2e-6) and asked == []


def test_clones_have_it_and_other_models_do_not(host, path, asked, add):
    model = load_model(str(path), "w4a16")
    for copy in (model.clone(), model.clone(disable_dynamic=True)):
        assert copy.model_options["transformer_options"][OVERRIDE] is attend
    folder = host.model_folder("diffusion_models")
    (dense,) = host.call("UNETLoader", unet_name=put_dense(folder), weight_dtype="default")
    sample_flux(model)
    assert asked
    del asked[:]
    sample_flux(dense)
    assert asked == []


def test_another_nodes_override_wins(host, path, asked):
    model, seen = load_model(str(path), "w4a16").clone(), []

    def theirs(function, *args, **kwargs):
        seen.append(function)
        return function(*args, **kwargs)

    model.model_options["transformer_options"][OVERRIDE] = theirs
    sample_flux(model)
    assert seen and asked == []


def test_a_copy_on_another_gpu_keeps_what_is_faster_there(asked, monkeypatch):
    q, k, v = (draw(1, 40, 256) for _ in range(3))
    monkeypatch.setattr(attention, "prefers_cudnn_attention", lambda device: False)
    assert torch.equal(call(q, k, v), SDPA(q, k, v, 4)) and asked == []


def test_an_override_that_was_there_first_stays(model, asked):
    theirs, copy = object(), model.clone()
    copy.model_options["transformer_options"][OVERRIDE] = theirs
    assert "another node" in choose_attention(copy, "auto")
    assert copy.model_options["transformer_options"][OVERRIDE] is theirs


def test_a_global_patch_of_another_pack_wins(host, path, asked, monkeypatch):
    seen = []

    @host_attention.wrap_attn
    def theirs(*args, **kwargs):
        seen.append(1)
        return host_attention.attention_basic(*args, **kwargs)

    model = load_model(str(path), "w4a16")
    monkeypatch.setattr(comfy.ldm.flux.math, "optimized_attention", theirs)
    sample_flux(model)
    assert seen and asked == []


def test_the_node_has_the_choice_and_old_workflows_load_without_it(host, path, asked):
    inputs = host.nodes.NODE_CLASS_MAPPINGS["SVDQuantModelLoader"].INPUT_TYPES()
    assert inputs["optional"]["attention"][1]["advanced"] is True
    name = put_tiny(path.parent)
    _, status = host.call("SVDQuantModelLoader", model_name=name, compute="w4a16")
    assert "attention cuDNN" in status
    _, status = host.call("SVDQuantModelLoader", model_name=name, compute="w4a16", attention="comfyui")
    assert "attention as ComfyUI chooses" in status


def test_a_model_that_hands_its_attention_no_options_gets_none(asked):
    sizes = {"hidden_size": 64, "num_heads": 2, "depth": 1, "caption_channels": 32, "model_max_length": 8}
    pixart = comfy.ldm.pixart.pixartms.PixArtMS(
        **sizes, dtype=torch.float32, device="meta", operations=comfy.ops.disable_weight_init
    )
    assert not attention.takes_override(pixart)


def test_models_that_hand_them_on(model):
    assert attention.takes_override(model.model.diffusion_model)


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU says")
def test_without_a_gpu_nothing_is_chosen_and_nothing_said(path):
    model, status = load_model_with_status(str(path), "w4a16")
    assert OVERRIDE not in model.model_options["transformer_options"] and "attention" not in status


class _Hopper:
    """Answers of a machine with an H200."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(attention, "prefers_cudnn_attention", lambda device: True)
        monkeypatch.setattr(host_attention, "optimized_attention", SDPA)
        monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: True)
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
        monkeypatch.setattr(comfy.ops, "SDPA_BACKEND_PRIORITY", [], raising=False)


def test_why_not(monkeypatch):
    device = torch.device("cuda", 0)
    _Hopper(monkeypatch)
    assert why_not_cudnn(device) is None
    for change in (
        lambda m: m.setattr(attention, "prefers_cudnn_attention", lambda device: False),
        lambda m: m.setattr(host_attention, "optimized_attention", host_attention.attention_split),
        lambda m: m.setenv(attention.DEPRIORITIZED, "1"),
        lambda m: m.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: False),
        lambda m: m.setattr(torch.backends.cudnn, "version", lambda: 90800),
        lambda m: m.setattr(torch.backends.cudnn, "version", lambda: None),
        lambda m: m.delattr(comfy.ops, "SDPA_BACKEND_PRIORITY"),
    ):
        with monkeypatch.context() as changed:
            change(changed)
            assert why_not_cudnn(device)
    assert why_not_cudnn(device) is None


def test_compiled_code_asks_for_it_without_a_break(asked):
    torch._dynamo.reset()
    q, k, v = (draw(1, 40, 256) for _ in range(3))
    expected = call(q, k, v)
    compiled = torch.compile(call, backend="eager", fullgraph=True)
    assert torch.equal(compiled(q, k, v), expected)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "shape", [(1, 24, 4608, 128), (2, 30, 1536, 64), (1, 24, 1536, 72), (1, 8, 1111, 128)], ids=str
)
def test_as_near_to_float32_as_the_hosts(shape):
    q, k, v = (draw(*shape).cuda() for _ in range(3))
    exact = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float())
    exact = exact.transpose(1, 2).reshape(shape[0], shape[2], -1)
    ours = call(q, k, v, heads=shape[1], skip_reshape=True)
    theirs = SDPA(q, k, v, shape[1], skip_reshape=True)
    # both round the result to bfloat16; measured on an H200: 2.4e-3 for either
    assert relative_error(ours.float(), exact) < 1.1 * relative_error(theirs.float(), exact)


@pytest.mark.gpu
def test_on_hopper_cudnn_is_what_runs(path):
    device = torch.device("cuda", 0)
    if why_not_cudnn(device) is not None:
        pytest.skip(f"{why_not_cudnn(device)}")
    model, status = load_model_with_status(str(path), "w4a16")
    assert "attention cuDNN" in status and OVERRIDE in model.model_options["transformer_options"]
    q, k, v = (draw(1, 24, 4608, 128).cuda() for _ in range(3))
    call(q, k, v, heads=24, skip_reshape=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call(q, k, v, heads=24, skip_reshape=True)
        torch.cuda.synchronize()
    assert any("cudnn" in event.key for event in profile.key_averages())
