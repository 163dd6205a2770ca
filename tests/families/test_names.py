"""The descriptions of svdq_core/models against ComfyUI's own classes: every name, shape and bias, and its maps."""

import math

import comfy.utils
import pytest
import torch
from checkpoint_files import write_tensors
from families.registry import FAMILIES as HOST
from tiny_files import DATA

from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.checkpoint.dense_read import DenseModel
from svdquant_pack.svdq_core.checkpoint.formats import FORMATS, save_model
from svdquant_pack.svdq_core.checkpoint.recognize import recognize_host
from svdquant_pack.svdq_core.checkpoint.shape_check import ShapeCheck
from svdquant_pack.svdq_core.errors import CheckpointError
from svdquant_pack.svdq_core.models import FAMILIES, FLUX2, KREA2, SDXL, ZIMAGE

IN_THE_HOST = {
    "flux": "flux1",
    "flux2": "flux2",
    "chroma": "chroma",
    "zimage": "zimage",
    "krea2": "krea2",
    "qwen_image": "qwen_image",
    "minimax_h3": "minimax_h3_curve",  # the pruned form, which is the smaller second file
    "sdxl": "sdxl",
    "ernie": "ernie",
    "pixart": "pixart",
}


def described(family, model) -> dict[str, tuple[int | None, ...] | None]:
    """Host tensor -> shape of everything in a model, as the family's description has it."""
    names = [host for host in family.plain_tensors() if not family.is_optional(host)]
    for block in family.blocks:
        for index in range(model.counts[block.host]):
            names += [f"{block.host}.{index}.{name}" for name in block.plain if name not in block.optional]
    shapes = {name: family.shape_of(name, model.width) for name in names}
    for host, linear in family.linears(model.counts):
        rows, columns = model.shapes.get(linear.host) or (None, None)
        shapes[f"{host}.weight"] = (rows, columns) if rows else family.shape_of(f"{host}.weight", model.width)
        if linear.bias:
            shapes[f"{host}.bias"] = (shapes[f"{host}.weight"][0],)
    return shapes


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_tensor_is_named_and_no_other(family):
    shapes, model = HOST[IN_THE_HOST[family.name]].published_shapes, family.published[0]
    ours = described(family, model)
    assert [name for name in ours if name not in shapes] == []
    assert [name for name in shapes if name not in ours and not family.is_optional(name)] == []
    if family.name == "sdxl":
        return  # whose width is another one at every level
    wrong = [
        (name, shape, shapes[name])
        for name, shape in ours.items()
        if shape is not None
        and (
            len(shape) != len(shapes[name]) or any(a not in (None, b) for a, b in zip(shape, shapes[name], strict=True))
        )
    ]
    assert wrong == []


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_shapes_fit_each_other(family):
    """Every letter of a description stands for one size, in the published model."""
    shapes, model = HOST[IN_THE_HOST[family.name]].published_shapes, family.published[0]
    check, names = ShapeCheck(family), [f"{host}.weight" for host, _ in family.linears(model.counts)]
    for name in [*names, *(name for name in shapes if name not in names)]:
        check.check(name, shapes[name], name)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_parameters_outside_the_linears_are_counted(family):
    shapes, model = HOST[IN_THE_HOST[family.name]].published_shapes, family.published[0]
    inside = {host for host, _ in family.linears(model.counts)}
    outside = sum(math.prod(shape) for name, shape in shapes.items() if name.rpartition(".")[0] not in inside)
    assert outside == pytest.approx(model.outside, rel=0.02)


def renamed(family, counts) -> dict[str, str]:
    """Diffusers' tensor -> host tensor, of everything that is one and the same tensor in both."""
    pairs = {source: host for host, source in family.plain_tensors().items()}
    for block in family.blocks:
        for index in range(counts[block.host]):
            before, prefix = f"{block.host}.{index}", f"{block.source}.{index}"
            for linear in block.linears:
                modules = block.alternatives(linear)[0]
                if len(modules) == 1:
                    for end in ("weight", "bias") if linear.bias else ("weight",):
                        pairs[f"{prefix}.{modules[0]}.{end}"] = f"{before}.{linear.host}.{end}"
            for name in block.plain:
                pairs[f"{prefix}.{block.plain_map(name).sources[0]}"] = f"{before}.{name}"
    return pairs


@pytest.mark.parametrize(
    ("family", "make"),
    [
        (SDXL, comfy.utils.unet_to_diffusers),
        (FLUX2, comfy.utils.flux_to_diffusers),
        (ZIMAGE, comfy.utils.z_image_to_diffusers),
        (KREA2, comfy.utils.krea2_to_diffusers),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_diffusers_names_are_those_of_comfyui(family, make):
    """ComfyUI maps them for LoRAs; what it maps as a whole must be what is read here."""
    theirs = make(HOST[IN_THE_HOST[family.name]].published)
    ours = renamed(family, family.published[0].counts)
    both = {name: target for name, target in theirs.items() if isinstance(target, str) and name in ours}
    assert len(both) > 40
    assert {n: (ours[n], t) for n, t in both.items() if ours[n] != t and f"{ours[n]}" != f"diffusion_model.{t}"} == {}


SAME_NAMES = {"mage_flow": "qwen_image", "minimax_h3": "minimax_h3"}


@pytest.mark.parametrize("name", HOST)
def test_every_family_of_comfyui_is_named(name):
    """By its description, or by its title; a file of none is taken for another family's."""
    family = recognize_host("x.safetensors", HOST[name].published_shapes)
    ours = {host: own for own, host in IN_THE_HOST.items()} | SAME_NAMES
    if name in ours:
        assert family.name == ours[name]
    else:
        assert family.generic and family.title != "unknown"


def test_a_file_in_nunchakus_layout_of_a_family_without_description_is_refused_by_name(tmp_path):
    code = torch.zeros(128, 64, dtype=torch.int8)
    path = write_tensors(tmp_path / "x.safetensors", {"double_stream_blocks.0.block.attn1.to_q.qweight": code})
    with pytest.raises(CheckpointError, match="HiDream recognised, not supported yet"):
        read_checkpoint(Checkpoint(path))


def test_a_dense_z_image_of_diffusers_is_put_together(tmp_path):
    """Taken apart by ComfyUI's own map, it comes back as it was."""
    model = read_checkpoint(Checkpoint(DATA / "families" / "zimage_nvfp4.safetensors"))
    save_model(tmp_path / "host.safetensors", model, FORMATS["bf16"](model.architecture))
    host = DenseModel(Checkpoint(tmp_path / "host.safetensors"))
    tensors = {}
    config = {"n_layers": 1, "dim": 128, "n_refiner_layers": 0}
    for theirs, ours in comfy.utils.z_image_to_diffusers(config).items():
        name, (dim, start, length) = (ours, (0, 0, None)) if isinstance(ours, str) else ours
        if name in host:
            whole = host[name]
            tensors[theirs] = whole.narrow(dim, start, whole.shape[dim] if length is None else length).clone()
    again = DenseModel(Checkpoint(write_tensors(tmp_path / "diffusers.safetensors", tensors)))
    assert set(again) == set(host) and again.ignored == []
    assert [name for name in host if not torch.equal(again[name], host[name])] == []
