"""Where models are listed and files written."""

import pytest

from svdquant_pack.svdq_core.errors import SVDQuantError


@pytest.fixture
def files(host):
    from svdquant_pack.nodes.host import files

    return files


def test_svdquant_files_come_first_in_the_list(host, files):
    folder = host.model_folder("diffusion_models")
    names = ("aaa-flux.safetensors", "svdq-int4_r32-zzz.safetensors", "My-SVDQ-aaa.safetensors")
    for name in names:
        (folder / name).touch()
    try:
        listed = [name for name in files.list_models() if name in names]
    finally:
        for name in names:
            (folder / name).unlink()
    assert listed == [names[2], names[1], names[0]]


def test_a_new_file_gets_the_first_free_number(host, files):
    first = files.output_path("counted/model", overwrite=False)
    assert first.name == "model.safetensors"
    first.parent.mkdir(parents=True)
    first.touch()
    assert files.output_path("counted/model", overwrite=True) == first
    for number in (2, 3):
        path = files.output_path("counted/model", overwrite=False)
        assert path == first.with_name(f"model_{number}.safetensors")
        path.touch()
    with pytest.raises(SVDQuantError, match="no file name inside"):
        files.output_path("../outside", overwrite=False)


@pytest.mark.parametrize("find", ["lora_path", "text_encoder_path", "model_path"])
@pytest.mark.parametrize("name", ["gone.safetensors", "caf\udce9.safetensors"])
def test_a_file_that_is_gone_is_said_in_a_sentence(files, find, name):
    with pytest.raises(SVDQuantError, match=r"not found in .*choose again") as found:
        getattr(files, find)(name)
    assert str(found.value).encode()


def test_4_bit_text_encoders_come_first_for_the_loader_and_last_for_the_quantizer(host, files):
    folder = host.model_folder("text_encoders")
    names = ("awq-int4-zzz.safetensors", "clip_zzz.safetensors", "my-zzz-awq-int4_2.safetensors")
    for name in names:
        (folder / name).touch()
    try:
        loading, quantizing = (
            [name for name in files.list_text_encoders(first) if name in names] for first in (True, False)
        )
        assert loading == [names[0], names[2], names[1]] and quantizing == [names[1], names[0], names[2]]
    finally:
        for name in names:
            (folder / name).unlink()


def test_checkpoints_of_ltx_2_are_offered_beside_text_encoders(host, files):
    folder = host.model_folder("checkpoints")
    names = ("ltx-2-19b.safetensors", "sdxl_zzz.safetensors")
    for name in names:
        (folder / name).touch()
    try:
        assert files.list_projections() == [names[0]]
        assert files.text_encoder_path(names[0]) == str(folder / names[0])
        with pytest.raises(SVDQuantError, match="not found in models/text_encoders"):
            files.text_encoder_path(names[1])
    finally:
        for name in names:
            (folder / name).unlink()
