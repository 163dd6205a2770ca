"""A file as a model to quantize: by ComfyUI's detection, without its weights in memory."""

from pathlib import Path

import comfy.model_detection
import comfy.utils
import pytest
import torch
from cheap_quantizing import SPEC, make_cheap
from families.models import detected_as, forward, load_dense
from families.registry import FAMILIES
from safetensors.torch import save_file
from sampling import relative_error

from svdquant_pack.nodes.host.model.build import load_model
from svdquant_pack.nodes.host.quantize.file_source import host_tensors, open_model, open_source
from svdquant_pack.nodes.host.quantize.lazy_tensors import LazyWeights
from svdquant_pack.nodes.host.quantize.plan_patcher import plan_patcher
from svdquant_pack.svdq_core.checkpoint import Checkpoint
from svdquant_pack.svdq_core.errors import CheckpointError
from svdquant_pack.svdq_core.quantize.command import QuantizeRequest, quantize_file
from svdquant_pack.svdq_core.quantize.overrides import Overrides

CPU = torch.device("cpu")


def write_dense(name: str, path: Path, prefix: str = ""):
    """The tiny dense model of a family as a file, and as the host's MODEL."""
    dense = load_dense(name)
    tensors = {f"{prefix}{n}": t.bfloat16().contiguous() for n, t in dense.model.diffusion_model.state_dict().items()}
    save_file(tensors, path, metadata=FAMILIES[name].metadata)
    return dense


@pytest.mark.parametrize("name", ["wan_t2v", "ltx23", "sd15", "hunyuan_video"])
def test_a_file_is_planned_as_the_model_in_the_graph(name, host, tmp_path):
    path = tmp_path / "dense.safetensors"
    dense = write_dense(name, path, prefix="model.diffusion_model." if name == "sd15" else "")
    with torch.inference_mode():
        in_graph = plan_patcher(dense).plan
    with detected_as(FAMILIES[name]):
        source = open_source(Checkpoint(path), 0, CPU)
    assert source.plan == in_graph and source.inputs is not None and not source.ignored
    for key, tensor in dense.model.diffusion_model.state_dict().items():
        assert torch.equal(source.weights[key], tensor.bfloat16()), key


def test_large_weights_stay_in_the_file(host, tmp_path):
    write_dense("qwen_image", tmp_path / "dense.safetensors")
    with detected_as(FAMILIES["qwen_image"]):
        model, weights, _ = open_model(Checkpoint(tmp_path / "dense.safetensors"))
    held = {n: p for n, p in model.diffusion_model.named_parameters() if not p.is_meta}
    assert held and all(p.ndim < 2 for p in held.values())  # of norms
    assert all(torch.equal(p.bfloat16(), weights[n]) for n, p in held.items())


def test_the_command_takes_what_comfyui_knows(host, monkeypatch, tmp_path):
    make_cheap(monkeypatch)
    name, path, target = "wan_t2v", tmp_path / "dense.safetensors", tmp_path / "svdq.safetensors"
    dense, lines = write_dense(name, path), []
    with detected_as(FAMILIES[name]):
        request = QuantizeRequest(path, target, SPEC, Overrides(), device="cpu")
        quantize_file(request, lines.append, open_source=open_source)
        with torch.inference_mode():
            loaded = load_model(str(target), "w4a16")
    assert "layers in int4" in lines[0] and any("reads the prompt as it came" in line for line in lines)
    assert set(loaded.svdquant_layers()) == {f"diffusion_model.{n}.weight" for n in plan_patcher(dense).plan.names}
    assert relative_error(forward(name, loaded), forward(name, dense)) < 0.25
    assert Checkpoint(target).metadata["svdquant_source"] == "dense.safetensors"


def test_names_of_diffusers(host, tmp_path):
    """Of a described family: under ComfyUI's names, slices and joins included."""
    from pixart_files import pixart

    host_names, theirs = pixart()
    save_file({n: t.contiguous() for n, t in theirs.items()}, tmp_path / "diffusers.safetensors")
    weights = LazyWeights(host_tensors(Checkpoint(tmp_path / "diffusers.safetensors"))[0])
    assert set(host_names) <= set(weights)
    for key in ("blocks.0.attn.qkv.weight", "blocks.0.cross_attn.kv_linear.bias", "final_layer.linear.weight"):
        assert torch.equal(weights[key], host_names[key].to(weights[key].dtype)), key


@pytest.mark.parametrize("name", ["sd3", "auraflow"])
def test_names_of_diffusers_of_a_family_that_nobody_has_described(name, host, monkeypatch, tmp_path):
    """ComfyUI joins query, key and value in memory that it makes for them; here nothing is read for that."""
    network = load_dense(name).model.diffusion_model.state_dict()
    network = {n: t.bfloat16() for n, t in network.items()}
    if name == "sd3":
        depth = sum(n.endswith("x_block.attn.qkv.weight") for n in network)
        names = comfy.utils.mmdit_to_diffusers({"depth": depth, "num_blocks": depth})
    else:
        double, single = (
            sum(n.startswith(k) and n.endswith("w2q.weight" if k[0] == "d" else "w1q.weight") for n in network)
            for k in ("double", "single")
        )
        names = comfy.utils.auraflow_to_diffusers({"n_double_layers": double, "n_layers": double + single})
    theirs = {}
    for source, place in names.items():
        host_name, span, *change = (place, None) if isinstance(place, str) else place
        if host_name in network:
            values = network[host_name] if span is None else network[host_name].narrow(*span)
            assert not change or torch.equal(change[0](change[0](values)), values)
            theirs[source] = (change[0](values) if change else values).contiguous()
    save_file(theirs, tmp_path / "diffusers.safetensors")
    with detected_as(FAMILIES[name]), monkeypatch.context() as patched:
        knows = comfy.model_detection.model_config_from_unet
        patched.setattr(
            comfy.model_detection,
            "model_config_from_unet",
            lambda tensors, *args, **named: None if theirs.keys() <= tensors.keys() else knows(tensors),
        )
        _, weights, _ = open_model(Checkpoint(tmp_path / "diffusers.safetensors"))
    joined = [n for n in weights if "qkv" in n or "w1q" in n]
    assert joined
    for key in weights:
        assert torch.equal(weights[key], network[key]), key


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.update({"blocks.0.self_attn.q.scale_weight": torch.zeros(2)}), "reduced precision already"),
        (lambda t: t.update({"blocks.0.self_attn.q.weight": torch.zeros(2, 2).to(torch.float8_e4m3fn)}), "F8_E4M3"),
        (lambda t: t.pop("blocks.1.ffn.0.weight"), r"1 missing tensors: blocks\.1\.ffn\.0\.weight"),
        (lambda t: t.update({"blocks.1.ffn.0.weight": torch.zeros(3, 5)}), r"ffn\.0\.weight has shape \(3, 5\)"),
    ],
    ids=["comfy_quant", "fp8", "missing", "shape"],
)
def test_what_cannot_be_quantized_is_said(host, tmp_path, change, sentence):
    dense = load_dense("wan_t2v")
    tensors = {n: t.bfloat16().contiguous() for n, t in dense.model.diffusion_model.state_dict().items()}
    change(tensors)
    save_file(tensors, tmp_path / "dense.safetensors")
    with detected_as(FAMILIES["wan_t2v"]), pytest.raises(CheckpointError, match=sentence):
        open_model(Checkpoint(tmp_path / "dense.safetensors"))


def test_a_file_of_something_else_is_refused(host, tmp_path):
    save_file({"encoder.conv_in.weight": torch.zeros(4, 4)}, tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match="knows no diffusion model"):
        open_model(Checkpoint(tmp_path / "vae.safetensors"))
