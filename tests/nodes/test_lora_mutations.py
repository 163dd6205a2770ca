"""Hundreds of damaged LoRA files and odd file names: each is applied, or refused with a sentence, and soon."""

import os
import sys
from collections import Counter
from pathlib import Path
from random import Random
from time import process_time

import comfy.lora
import pytest
import torch
from file_mutations import Original
from host_models import put_dense, put_tiny
from lora_files import ADAPTERS, FUSED_LAYERS, diffusers_lora, host_lora
from lora_mutations import ALL, FILE_NAMES, REFUSED, pickled
from network_runs import NetworkRun
from safetensors.torch import save

from svdquant_pack.nodes.host.lora.factors import build_lora
from svdquant_pack.nodes.host.lora.install import plans_of
from svdquant_pack.nodes.host.lora.lora_file import apply_lora_file
from svdquant_pack.svdq_core.errors import LoraError

ROUNDS = 28  # of every mutation: 560 files
SLOWEST = 5.0  # seconds of CPU for one file


def mixed_adapters() -> dict[str, torch.Tensor]:
    """A layer for each kind of adapter."""
    lora = {}
    for i, (kind, (name, sizes)) in enumerate(zip(ADAPTERS, FUSED_LAYERS.items(), strict=False)):
        lora |= ADAPTERS[kind](i, f"diffusion_model.{name}", *sizes)
    return lora


@pytest.fixture(scope="module")
def originals() -> list[Original]:
    files = diffusers_lora(5), host_lora(6), mixed_adapters()
    return [Original(save({name: t.contiguous() for name, t in lora.items()})) for lora in files]


@pytest.fixture(scope="module")
def models(host):
    folder = host.model_folder("diffusion_models")
    quantized = host.call("SVDQuantModelLoader", model_name=put_tiny(folder), compute="w4a16")[0]
    return [quantized, host.call("UNETLoader", unet_name=put_dense(folder), weight_dtype="default")[0]]


def use(patched) -> None:
    """What sampling does with the patches; must not fail where applying did not."""
    layers = patched.svdquant_layers() if hasattr(patched, "svdquant_layers") else {}
    for key, plan in plans_of(patched).items() if layers else ():
        module = layers[key]
        if plan is not None:
            sizes, cpu = (module.in_features, module.out_features), torch.device("cpu")
            made = build_lora(plan, lambda m=module, d=cpu: m.layer_on(d), sizes, device=cpu, dtype=torch.float32)
            assert all(bool(tensor.isfinite().all()) for tensor in made.values()), key
    for key, patches in patched.patches.items():
        if key not in layers and not key.endswith(".bias"):
            weight = comfy.utils.get_attr(patched.model, key).detach().float().clone()
            comfy.lora.calculate_weight(patches, weight, key)


def test_damaged_files(models, originals, tmp_path, capsys):
    counts, slowest, seed = Counter(), 0.0, 0
    for mutation in ALL:
        for _ in range(ROUNDS):
            seed += 1
            random = Random(seed)
            data, _legal = mutation(random, random.choice(originals))
            path = tmp_path / ("damaged.pt" if mutation is pickled else "damaged.safetensors")
            path.write_bytes(data)
            before = process_time()
            try:
                patched, report = apply_lora_file(random.choice(models), str(path), 0.8)
                use(patched)
                outcome = "taken"
                assert report.text() and mutation not in REFUSED, (mutation.__name__, seed)
            except LoraError as error:
                outcome = "refused"
                text = str(error)
                assert text.startswith(path.name) and len(text) < 1500 and "Traceback" not in text, (seed, text)
            slowest = max(slowest, process_time() - before)
            counts[mutation.__name__, outcome] += 1
    with capsys.disabled():
        totals = Counter(outcome for (_, outcome), number in counts.items() for _ in range(number))
        print(f"\n{seed} damaged LoRA files: {dict(totals)}; slowest {slowest:.2f} s of CPU")  # noqa: T201
    assert seed >= 500 and slowest < SLOWEST
    taken = sum(number for (_, outcome), number in counts.items() if outcome == "taken")
    assert 50 < taken < seed - 50, "the mutations are all too weak, or all too strong"
    assert bool(torch.isfinite(NetworkRun(models[0])()).all())


@pytest.mark.skipif(sys.platform == "win32", reason="such names cannot be had there")
def test_odd_file_names(models, originals, tmp_path):
    for name in FILE_NAMES:
        path = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
        data = originals[0].data if path.lower().endswith((".safetensors", ".sft")) else as_pickle(originals[0])
        Path(path).write_bytes(data)
        _, report = apply_lora_file(models[0], path, 0.5)
        assert "8 layers matched" in report.text()
        report.text().encode("utf-8")  # a name of other bytes can still be shown
        Path(path).write_bytes(data[:100])
        with pytest.raises(LoraError) as caught:
            apply_lora_file(models[0], path, 0.5)
        str(caught.value).encode("utf-8")


def as_pickle(file: Original) -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save(file.tensors, buffer)
    return buffer.getvalue()
