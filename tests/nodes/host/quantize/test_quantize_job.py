"""A run that is interrupted, crashes, meets another one, or runs out of memory; and layers that stay in 16 bits."""

import subprocess
import sys
from pathlib import Path

import comfy.model_management
import comfy.ops
import pytest
import torch
from host_models import put_lora
from quantize_node import quantize
from safetensors import safe_open
from sampling import relative_error, sample_flux

from svdquant_pack import ROOT
from svdquant_pack.svdq_core.errors import SVDQuantError
from svdquant_pack.svdq_core.quantize import whole_model
from svdquant_pack.svdq_core.quantize.journal import LAYER_SUFFIX, journal_folder

LAYERS = 13  # of the tiny FLUX


@pytest.fixture(scope="module")
def whole(host, dense):
    """The bytes that a run without interruption writes, and its report."""
    _, path, report, _ = quantize(host, dense, filename_prefix="whole")
    return Path(path).read_bytes(), report


def target(host, name: str) -> Path:
    return host.output / "diffusion_models" / f"svdq-int4_r16-{name}.safetensors"


def stop_after(monkeypatch, layers: int, error: type[BaseException]) -> None:
    """Let a run end in the middle of a layer, as a cancel does."""
    quantize_layer, done = whole_model.quantize_layer, []

    def counted(*args, **more):
        if len(done) == layers:
            raise error
        done.append(1)
        return quantize_layer(*args, **more)

    monkeypatch.setattr(whole_model, "quantize_layer", counted)


@pytest.mark.parametrize("error", [comfy.model_management.InterruptProcessingException, MemoryError, KeyboardInterrupt])
def test_an_interrupted_run_goes_on_and_writes_the_same_bytes(host, dense, whole, monkeypatch, caplog, error):
    caplog.set_level("INFO", "svdquant")
    path = target(host, f"stopped-{error.__name__}")
    with monkeypatch.context() as patch:
        stop_after(patch, 5, error)
        with pytest.raises(error):
            quantize(host, dense, filename_prefix=f"stopped-{error.__name__}")
    assert not path.exists()
    assert f"finished layers wait in {journal_folder(path)}; the same settings go on" in caplog.text
    assert len(list(journal_folder(path).glob(f"*{LAYER_SUFFIX}"))) == 5
    assert not list(path.parent.rglob("*.part"))
    quantized = []
    with monkeypatch.context() as patch:
        one = whole_model.quantize_layer
        patch.setattr(
            whole_model, "quantize_layer", lambda *args, **more: quantized.append(args[4]) or one(*args, **more)
        )
        report = quantize(host, dense, filename_prefix=f"stopped-{error.__name__}")[2]
    assert len(quantized) == LAYERS - 5
    assert path.read_bytes() == whole[0]
    assert "5 layers had been finished by an earlier run" in report and "earlier run" not in whole[1]
    assert not journal_folder(path).exists()


def test_unfinished_layers_are_no_models(host, dense, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 2, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            quantize(host, dense, filename_prefix="half")
    node = host.nodes.NODE_CLASS_MAPPINGS["SVDQuantModelLoader"]
    assert not [name for name in node.INPUT_TYPES()["required"]["model_name"][1]["options"] if "half" in name]


@pytest.mark.parametrize("change", [{"seed": 1}, {"method": "best"}, {"keep_16bit": "*.img_mlp.2"}])
def test_other_settings_start_over(host, dense, monkeypatch, caplog, change):
    name = f"changed-{next(iter(change))}"
    with monkeypatch.context() as patch:
        stop_after(patch, 3, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            quantize(host, dense, filename_prefix=name)
    caplog.set_level("INFO", "svdquant")
    report = quantize(host, dense, filename_prefix=name, **change)[2]
    assert "earlier run" not in report
    assert any("3 finished layers" in message for message in caplog.messages)
    assert not journal_folder(target(host, name)).exists()


def test_another_lora_starts_over(host, dense, monkeypatch):
    lora = put_lora(host.model_folder("loras"))
    strong, weak = (
        host.call("LoraLoaderModelOnly", model=dense, lora_name=lora, strength_model=s)[0] for s in (1.0, 0.5)
    )
    with monkeypatch.context() as patch:
        stop_after(patch, 3, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            quantize(host, strong, filename_prefix="loras")
    assert "earlier run" not in quantize(host, weak, filename_prefix="loras")[2]


def test_cancel_within_a_layer(host, dense, monkeypatch):
    calls = []

    def cancelled():
        calls.append(1)
        if len(calls) == 10:  # a layer asks some twenty times
            raise comfy.model_management.InterruptProcessingException()

    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", cancelled)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        quantize(host, dense, filename_prefix="cancelled")
    assert not target(host, "cancelled").exists() and len(calls) == 10


def test_two_runs_to_one_name(host, dense):
    path = target(host, "shared")
    program = (
        "import sys, time; sys.path.insert(0, 'tools'); from pathlib import Path\n"
        "from svdquant_pack.svdq_core.quantize.journal import Journal\n"
        f"with Journal(Path({str(path)!r}), 'x').locked(): print('locked', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "locked\n"
            with pytest.raises(
                SVDQuantError, match=rf"another run is writing this file \(process {other.pid} on .*Wait"
            ):
                quantize(host, dense, filename_prefix="shared")
        finally:
            other.kill()  # as a crash: the system lets go of the lock
    assert Path(quantize(host, dense, filename_prefix="shared")[1]) == path
    assert path.exists() and not journal_folder(path).exists()


def test_a_card_without_memory(host, dense, whole, monkeypatch, caplog):
    """The first try of some layers fails; models are unloaded and the bytes are the same."""
    quantize_layer, unloaded, failed = whole_model.quantize_layer, [], set()

    def short_of_memory(*args, **more):
        if "single" in args[4] and args[4] not in failed:
            failed.add(args[4])
            raise torch.OutOfMemoryError("CUDA out of memory")
        return quantize_layer(*args, **more)

    unload = comfy.model_management.unload_all_models
    monkeypatch.setattr(comfy.model_management, "unload_all_models", lambda: unloaded.append(1) or unload())
    monkeypatch.setattr(whole_model, "quantize_layer", short_of_memory)
    path = quantize(host, dense, filename_prefix="no-memory")[1]
    assert len(failed) == len(unloaded) == 3
    assert Path(path).read_bytes() == whole[0]
    assert sum("not enough memory; making room" in message for message in caplog.messages) == 3


def test_no_memory_at_all_is_a_sentence(host, dense, monkeypatch):
    def no_memory(*args, **more):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(whole_model, "quantize_layer", no_memory)
    with pytest.raises(SVDQuantError, match=r"double_blocks\.0\.img_mod\.lin: \S+ has not enough memory.*finished"):
        quantize(host, dense, filename_prefix="never")
    assert not journal_folder(target(host, "never")).exists()


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"keep_16bit": "double_blocks.0.img_*, *.linear2"}, 6),
        ({"keep_16bit": "*.linear1"}, 1),
        ({"keep_worst": 2}, 2),
        ({"error_limit": 1e-6}, 10),
    ],
    ids=str,
)
def test_layers_in_16_bits_come_back_as_they_were(host, dense, choice, expected):
    model, path, report, _ = quantize(host, dense, filename_prefix="mixed", **choice)
    assert report.count("kept in 16 bits") == expected
    again, _ = host.call("SVDQuantModelLoader", model_name=Path(path).name, compute="w4a8")
    network, original = again.model.diffusion_model, dense.model.diffusion_model.state_dict()
    plain = [n for n, m in network.named_modules() if "_blocks." in n and type(m) is comfy.ops.manual_cast.Linear]
    assert len(plain) == expected
    for name in plain:
        weight = network.get_submodule(name).weight
        assert torch.equal(weight.float().cpu(), original[f"{name}.weight"].bfloat16().float().cpu()), name
    picture = sample_flux(model)
    assert torch.equal(sample_flux(again), picture)
    assert relative_error(picture, sample_flux(dense)) < 0.05


def test_the_worst_are_those_that_the_report_names(host, dense, whole):
    worst = whole[1].split("largest errors:\n  ")[1].split(" ")[0]
    report = quantize(host, dense, filename_prefix="worst", keep_worst=1)[2]
    assert f"kept in 16 bits: {worst}: stays in 16 bits" in report


def test_a_pattern_that_matches_nothing_is_refused(host, dense):
    with pytest.raises(SVDQuantError, match=r"'blocks\.7\.\*' matches no layer.*double_blocks\.0"):
        quantize(host, dense, filename_prefix="pattern", keep_16bit="blocks.7.*")


def test_no_layer_left_is_refused(host, dense):
    with pytest.raises(SVDQuantError, match="no layer is left to be quantized"):
        quantize(host, dense, filename_prefix="nothing", keep_16bit="*")
    assert not target(host, "nothing").exists()


def test_provenance(host, dense, whole):
    lora = put_lora(host.model_folder("loras"))
    (with_lora,) = host.call("LoraLoaderModelOnly", model=dense, lora_name=lora, strength_model=1.0)
    said = []
    for model in (dense, with_lora):
        path = quantize(host, model, filename_prefix="said")[1]
        with safe_open(path, framework="pt") as file:
            said.append(file.metadata())
    plain, baked = said
    assert plain["svdquant_source_hash"] == baked["svdquant_source_hash"] and len(plain["svdquant_source_hash"]) == 32
    assert plain["svdquant_baked_patches"] == "none" and " weights, " in baked["svdquant_baked_patches"]
    assert plain["svdquant_calibration"] == "none" and f"torch {torch.__version__}" in plain["svdquant_made_with"]
    assert "rank 16" in plain["svdquant_method"] and "seed 0" in plain["svdquant_method"]
