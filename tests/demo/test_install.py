"""Models and nodes land where the host looks."""

import pytest
import torch

from svdquant_pack.demo import install
from svdquant_pack.demo.scenes import encode


def test_models_are_copied_once(tmp_path):
    install.install_models(tmp_path)
    targets = [tmp_path / "models" / folder / name for name, folder in install.MODEL_FOLDERS.items()]
    assert [target.read_bytes() for target in targets] == [(install.MODELS / t.name).read_bytes() for t in targets]
    stamps = [target.stat().st_ctime_ns for target in targets]
    install.install_models(tmp_path)
    assert [target.stat().st_ctime_ns for target in targets] == stamps


def test_a_damaged_copy_is_replaced(tmp_path):
    install.install_models(tmp_path)
    target = tmp_path / "models" / "loras" / install.LORA
    target.write_bytes(b"short")
    install.install_models(tmp_path)
    assert target.stat().st_size == (install.MODELS / install.LORA).stat().st_size


@pytest.mark.host
def test_ids_of_the_demo_nodes(demo_nodes):
    assert set(demo_nodes) == set(install.NODE_IDS)


@pytest.mark.host
def test_conditioning_node_gives_the_tensors_of_scenes(demo_nodes):
    caption = "a small green ring left of a large red star on a dotted blue background"
    ((context, extra),) = demo_nodes["DemoSceneConditioning"].execute(caption).args[0]
    expected_context, expected_pooled = encode(caption)
    assert torch.equal(context, expected_context)
    assert torch.equal(extra["pooled_output"], expected_pooled)


@pytest.mark.host
def test_conditioning_node_refuses_what_the_model_was_not_taught(demo_nodes):
    with pytest.raises(ValueError, match="does not know 'cat'"):
        demo_nodes["DemoSceneConditioning"].execute("a cat on a plain white background")
    with pytest.raises(ValueError, match="no sentence"):
        demo_nodes["DemoSceneConditioning"].execute("a white background")


@pytest.mark.host
def test_seeded_conditioning_depends_on_the_seed_alone(demo_nodes):
    node = demo_nodes["DemoSeededConditioning"]
    first, again, other = (node.execute(tokens=3, width=8, seed=seed).args[0][0][0] for seed in (1, 1, 2))
    assert first.shape == (1, 3, 8)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_it_goes_into_a_users_comfyui(tmp_path, capsys):
    comfyui = tmp_path / "ComfyUI"
    assert install.main([str(comfyui)]) == 2 and "not a ComfyUI folder" in capsys.readouterr().out
    (comfyui / "custom_nodes").mkdir(parents=True)
    (comfyui / "main.py").touch()
    assert install.main([str(comfyui)]) == 0
    said = capsys.readouterr().out
    for name, folder in install.MODEL_FOLDERS.items():
        path = comfyui / "models" / folder / name
        assert path.is_file() and str(path) in said
    assert (comfyui / "custom_nodes" / install.NODE_PACK / "scenes.py").is_file() and "Restart" in said
