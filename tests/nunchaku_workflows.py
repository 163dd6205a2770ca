"""Workflows as ComfyUI's page saves them, with nodes of ComfyUI-nunchaku; and what to look up in a migrated one."""

LOADER = {"compute": "auto", "attention": "auto", "second_file": "none"}


def node(number, class_type, values, inputs=(), outputs=(), **more):
    """A node as the page saves it; inputs: (name, type, link[, is a widget]), outputs: (type, [links])."""
    return {
        "id": number,
        "type": class_type,
        "pos": [10 * number, 20],
        "size": [300, 200],
        "mode": 0,
        "inputs": [
            {"name": i[0], "type": i[1], "link": i[2], **({"widget": {"name": i[0]}} if len(i) > 3 else {})}
            for i in inputs
        ],
        "outputs": [{"name": kind, "type": kind, "links": links or None} for kind, links in outputs],
        "properties": {"cnr_id": "ComfyUI-nunchaku"},
        "widgets_values": values,
        **more,
    }


def page_form(nodes, links, **more):
    numbers = [n["id"] for n in nodes]
    last = {"last_node_id": max(numbers), "last_link_id": max((link[0] for link in links), default=0)}
    return {"id": "x", "nodes": nodes, "links": links, "groups": [], "version": 0.4, **last, **more}


def flux():
    """Loader, two LoRAs, text encoders with 4-bit T5, a strength that comes from another node."""
    return page_form(
        [
            node(
                1,
                "NunchakuFluxDiTLoader",
                ["svdq-int4-flux.1-dev", 0.12, "nunchaku-fp16", "auto", 0, "bfloat16", "enabled"],
                [("cache_threshold", "FLOAT", 9, True)],
                [("MODEL", [1])],
            ),
            node(2, "NunchakuFluxLoraLoader", ["a.safetensors", 0.8], [("model", "MODEL", 1)], [("MODEL", [2])]),
            node(
                3,
                "NunchakuFluxLoraLoader",
                ["b.safetensors", 1],
                [("model", "MODEL", 2), ("lora_strength", "FLOAT", 8, True)],
                [("MODEL", [3])],
                title="My LoRA",
            ),
            node(
                4,
                "NunchakuTextEncoderLoaderV2",
                ["flux.1", "clip_l.safetensors", "awq-int4-flux.1-t5xxl.safetensors", 512],
                [],
                [("CLIP", [4, 5])],
            ),
            node(5, "CLIPTextEncode", ["hello"], [("clip", "CLIP", 4)], [("CONDITIONING", [6])]),
            node(6, "CLIPTextEncode", ["world"], [("clip", "CLIP", 5)], [("CONDITIONING", [7])]),
            node(
                7,
                "KSampler",
                [1, "fixed", 8, 1, "euler", "simple", 1],
                [("model", "MODEL", 3), ("positive", "CONDITIONING", 6), ("negative", "CONDITIONING", 7)],
            ),
            node(8, "PrimitiveNode", [0.5, "fixed"], [], [("FLOAT", [8, 9])]),
        ],
        [
            [1, 1, 0, 2, 0, "MODEL"],
            [2, 2, 0, 3, 0, "MODEL"],
            [3, 3, 0, 7, 0, "MODEL"],
            [4, 4, 0, 5, 0, "CLIP"],
            [5, 4, 0, 6, 0, "CLIP"],
            [6, 5, 0, 7, 1, "CONDITIONING"],
            [7, 6, 0, 7, 2, "CONDITIONING"],
            [8, 8, 0, 3, 1, "FLOAT"],
            [9, 8, 0, 1, 0, "FLOAT"],
        ],
    )


def stack(names, links_out=(2,)):
    values = [v for name, strength in names for v in (name, strength)]
    values += ["None", 1.0] * (15 - len(names))
    return page_form(
        [
            node(1, "NunchakuFluxDiTLoader", ["m", 0, "a", "auto", 0, "b", "e"], [], [("MODEL", [1])]),
            node(2, "NunchakuFluxLoraStack", values, [("model", "MODEL", 1)], [("MODEL", list(links_out))]),
            node(3, "KSampler", [], [("model", "MODEL", 2)]),
        ],
        [[1, 1, 0, 2, 0, "MODEL"], [2, 2, 0, 3, 0, "MODEL"]],
    )


def check_links(form):
    """Every link is known at both of its ends, and every end knows its link."""
    nodes = {n["id"]: n for n in form["nodes"]}
    ends = set()
    for number, origin, slot, target, at, _ in form["links"]:
        assert number in nodes[origin]["outputs"][slot]["links"]
        assert nodes[target]["inputs"][at]["link"] == number
        ends |= {(origin, "out", number), (target, "in", number)}
    for n in form["nodes"]:
        for entry in n["inputs"]:
            assert entry["link"] is None or (n["id"], "in", entry["link"]) in ends
        for output in n["outputs"]:
            assert all((n["id"], "out", number) in ends for number in output["links"] or [])
    assert form["last_node_id"] >= max(nodes) and form["last_link_id"] >= max((e[0] for e in form["links"]), default=0)


def find(form, class_type):
    return [n for n in form["nodes"] if n["type"] == class_type]


def source_of(form, n, name):
    """The node that an input comes from."""
    link = next(entry["link"] for entry in n["inputs"] if entry["name"] == name)
    origin = next(entry[1] for entry in form["links"] if entry[0] == link)
    return next(other for other in form["nodes"] if other["id"] == origin)
