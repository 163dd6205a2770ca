"""Workflows of ComfyUI-nunchaku become ours: files, strengths and links stay, nothing dangles, the rest is said."""

import copy
import json

import pytest
from migrate_workflow import NoWorkflowError, main, migrate
from nunchaku_workflows import LOADER, check_links, find, flux, node, page_form, source_of, stack


def test_files_strengths_and_links_stay():
    form, _ = migrate(flux())
    check_links(form)
    (loader,) = find(form, "SVDQuantModelLoader")
    assert loader["widgets_values"] == ["svdq-int4-flux.1-dev", *LOADER.values()] and loader["pos"] == [10, 20]
    first, second = find(form, "SVDQuantLoraLoader")
    assert (first["widgets_values"], second["widgets_values"]) == (["a.safetensors", 0.8], ["b.safetensors", 1.0])
    assert second["title"] == "My LoRA"
    assert source_of(form, first, "model") is loader and source_of(form, second, "model") is first
    assert source_of(form, find(form, "KSampler")[0], "model") is second
    assert source_of(form, second, "strength")["type"] == "PrimitiveNode"


def test_text_encoders_keep_their_files_and_length():
    form, _ = migrate(flux())
    (loader,), (options,) = find(form, "SVDQuantTextEncoderLoader"), find(form, "T5TokenizerOptions")
    four_bit = "awq-int4-flux.1-t5xxl.safetensors"
    assert loader["widgets_values"] == [four_bit, "flux", "clip_l.safetensors", "none", "default"]
    assert options["widgets_values"] == [0, 512]
    assert source_of(form, options, "clip") is loader
    assert all(source_of(form, text, "clip") is options for text in find(form, "CLIPTextEncode"))


def test_a_length_that_is_comfyuis_own_needs_no_node():
    form = flux()
    form["nodes"][3]["widgets_values"][3] = 256
    form, _ = migrate(form)
    check_links(form)
    assert not find(form, "T5TokenizerOptions") and find(form, "SVDQuantTextEncoderLoader")


def test_what_is_left_out_is_said_and_its_link_goes():
    form, lines = migrate(flux())
    assert any("cache_threshold 0.12 is left out" in line for line in lines)
    assert find(form, "PrimitiveNode")[0]["outputs"][0]["links"] == [8]
    assert 9 not in [link[0] for link in form["links"]]


def test_a_stack_keeps_the_rows_in_use():
    form, _ = migrate(stack([("a", 1.0), ("None", 0.5), ("c", -0.25)]))
    check_links(form)
    (new,) = find(form, "SVDQuantLoraStack")
    assert new["widgets_values"] == ["2", True, "a", 1.0, True, "c", -0.25]


def test_more_rows_than_one_node_holds_become_two_nodes():
    form, lines = migrate(stack([(f"l{i}", 1.0) for i in range(13)]))
    check_links(form)
    first, second = find(form, "SVDQuantLoraStack")
    assert (first["widgets_values"][0], second["widgets_values"][0]) == ("10", "3")
    assert source_of(form, second, "model") is first and source_of(form, find(form, "KSampler")[0], "model") is second
    assert any("13 LoRAs: two nodes" in line for line in lines)


def test_a_stack_without_loras_is_taken_out():
    form, lines = migrate(stack([]))
    check_links(form)
    assert not find(form, "SVDQuantLoraStack")
    assert source_of(form, find(form, "KSampler")[0], "model")["type"] == "SVDQuantModelLoader"
    assert any("taken out" in line for line in lines)


@pytest.mark.parametrize("class_type", ["NunchakuFluxPuLIDApplyV2", "NunchakuModelMerger", "NunchakuNewThing"])
def test_what_has_no_counterpart_stays_and_is_said(class_type):
    before = page_form([node(1, class_type, [1])], [])
    after, lines = migrate(before)
    assert after["nodes"] == before["nodes"]
    assert len(lines) == 1 and class_type in lines[0]


def test_subgraphs_are_migrated_with_their_kind_of_links():
    inner = stack([(f"l{i}", 1.0) for i in range(11)])
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    inner["links"] = [dict(zip(keys, link, strict=True)) for link in inner["links"]]
    inner["state"] = {"lastNodeId": 20, "lastLinkId": 30}
    form, _ = migrate(page_form([node(1, "Note", ["x"])], [], definitions={"subgraphs": [inner]}))
    (graph,) = form["definitions"]["subgraphs"]
    assert [n["type"] for n in graph["nodes"]].count("SVDQuantLoraStack") == 2
    assert all(isinstance(link, dict) for link in graph["links"])
    assert graph["state"] == {"lastNodeId": 21, "lastLinkId": 31}
    graph["links"] = [list(link.values()) for link in graph["links"]]
    graph |= {"last_node_id": 21, "last_link_id": 31}
    check_links(graph)


def test_the_api_form_too():
    before = {
        "1": {"class_type": "NunchakuFluxDiTLoader", "inputs": {"model_path": "m", "cache_threshold": 0}},
        "2": {
            "class_type": "NunchakuFluxLoraStack",
            "inputs": {"model": ["1", 0], "lora_name_1": "a", "lora_strength_1": ["9", 0], "lora_name_2": "None"},
        },
        "3": {
            "class_type": "NunchakuTextEncoderLoader",
            "_meta": {"title": "T"},
            "inputs": {"text_encoder1": "t5xxl.safetensors", "text_encoder2": "clip_l", "t5_min_length": 512},
        },
        "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["3", 0], "text": "x"}},
        "5": {"class_type": "KSampler", "inputs": {"model": ["2", 0]}},
    }
    untouched = copy.deepcopy(before)
    after, _ = migrate(before)
    assert before == untouched
    assert after == {
        "1": {"class_type": "SVDQuantModelLoader", "inputs": {**LOADER, "model_name": "m"}},
        "2": {
            "class_type": "SVDQuantLoraStack",
            "inputs": {
                "loras": "1",
                "loras.on_1": True,
                "loras.lora_1": "a",
                "loras.strength_1": ["9", 0],
                "model": ["1", 0],
            },
        },
        "3": {
            "class_type": "DualCLIPLoader",
            "_meta": {"title": "T"},
            "inputs": {
                "clip_name1": "t5xxl.safetensors",
                "clip_name2": "clip_l",
                "type": "flux",
                "device": "default",
            },
        },
        "3.1": {"class_type": "T5TokenizerOptions", "inputs": {"min_padding": 0, "min_length": 512, "clip": ["3", 0]}},
        "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["3.1", 0], "text": "x"}},
        "5": {"class_type": "KSampler", "inputs": {"model": ["2", 0]}},
    }


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {}, "text"])
def test_what_is_no_workflow_is_refused(content):
    with pytest.raises(NoWorkflowError):
        migrate(content)


def test_the_command(tmp_path, capsys):
    (tmp_path / "in.json").write_text(json.dumps(flux()))
    assert main([str(tmp_path / "in.json"), str(tmp_path / "new" / "out.json")]) == 0
    assert "NunchakuFluxDiTLoader -> SVDQuantModelLoader" in capsys.readouterr().out
    check_links(json.loads((tmp_path / "new" / "out.json").read_text(encoding="utf-8")))
    (tmp_path / "bad.json").write_text("{")
    capsys.readouterr()
    assert main([str(tmp_path / "bad.json"), str(tmp_path / "out.json")]) == 2


def test_nothing_is_written_where_nothing_was_replaced(tmp_path, capsys):
    ours, stays = node(1, "KSampler", []), node(1, "NunchakuPulidApply", [])
    for name, kept in (("core", ours), ("pulid", stays)):
        (tmp_path / f"{name}.json").write_text(json.dumps(page_form([kept], [])))
        assert main([str(tmp_path / f"{name}.json"), str(tmp_path / f"{name}-out.json")]) == 0
        said = capsys.readouterr().out
        assert "nothing was replaced" in said and "written:" not in said
        assert not (tmp_path / f"{name}-out.json").exists()


def test_a_further_node_covers_no_other_one():
    form = flux()
    encoders = find(form, "NunchakuTextEncoderLoaderV2")[0]
    left, top = encoders["pos"]
    for number, lower in ((20, 230), (21, 700)):  # as the page stacks loaders
        form["nodes"].append(node(number, "VAELoader", ["ae"], pos=[left, top + lower], size=[300, 400]))
    migrated, _ = migrate(form)
    (added,) = find(migrated, "T5TokenizerOptions")
    for other in find(migrated, "VAELoader"):
        assert added["pos"][1] - 30 >= other["pos"][1] + other["size"][1] or (
            added["pos"][1] + added["size"][1] <= other["pos"][1] - 30
        )


@pytest.mark.parametrize("class_type", ["NunchakuQwenImageDiTLoader", "NunchakuZImageDiTLoader"])
def test_loaders_of_other_families(class_type):
    nodes = [
        node(1, class_type, ["svdq-int4_r32-x.safetensors", "enable", 20, "disable"], [], [("MODEL", [1])]),
        node(2, "KSampler", [], [("model", "MODEL", 1)]),
    ]
    form, lines = migrate(page_form(nodes, [[1, 1, 0, 2, 0, "MODEL"]]))
    check_links(form)
    (loader,) = find(form, "SVDQuantModelLoader")
    assert loader["widgets_values"] == ["svdq-int4_r32-x.safetensors", *LOADER.values()]
    assert any("--lowvram" in line for line in lines)


def test_loras_of_qwen_image():
    nodes = [
        node(1, "NunchakuQwenImageDiTLoader", ["a.safetensors", "disable", 20, "disable"], [], [("MODEL", [1])]),
        node(2, "NunchakuQwenImageLoraLoader", ["b.safetensors", 0.5], [("model", "MODEL", 1)], [("MODEL", [2])]),
        node(
            3,
            "NunchakuQwenImageLoraStack",
            ["None", 1.0, "c.safetensors", -1.0],
            [("model", "MODEL", 2)],
            [("MODEL", [3])],
        ),
        node(4, "NunchakuZImageTurboLoraStackV4", [], [("model", "MODEL", 3)], [("MODEL", [4])]),
        node(5, "KSampler", [], [("model", "MODEL", 4)]),
    ]
    links = [[n, n, 0, n + 1, 0, "MODEL"] for n in range(1, 5)]
    form, lines = migrate(page_form(nodes, links))
    check_links(form)
    assert find(form, "SVDQuantLoraLoader")[0]["widgets_values"][:2] == ["b.safetensors", 0.5]
    (stack,) = find(form, "SVDQuantLoraStack")
    assert "c.safetensors" in stack["widgets_values"] and -1.0 in stack["widgets_values"]
    assert any("V4 stays, without counterpart: LoRAs of another pack" in line for line in lines)
