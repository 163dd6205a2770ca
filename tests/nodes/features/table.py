"""Runs the tests of LoRA formats, memory states and host features, and prints tables of them for the README.

    COMFYUI_PATH=... python tests/nodes/features/table.py [FILE]

A row exists because a test does: it says "yes" where all its tests passed, and "no" otherwise.
"""

import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TESTS = ("tests/nodes/features", "tests/nodes/test_apply_lora.py", "tests/nodes/test_lora_stack.py", "tests/nodes/host")

PIXART_LACKS = "ComfyUI's PixArt ignores it, in full precision as well"
FLUX_LACKS = "ComfyUI has it for FLUX.2 only"

# test function without a parameter that names the row -> row
FORMATS = {
    "test_xlabs": "LoRA file: XLabs",
    "test_a_file_converted_for_nunchaku": "LoRA file: converted for nunchaku",
    "test_a_converted_file_with_norms": "LoRA file: converted for nunchaku, with norms",
    "test_flux_tools_widen_the_image_input": "LoRA file: FLUX tools, widening the image input, with biases and norms",
    "test_loaders_of_both_kinds_in_any_order": "stock LoRA loaders and ours, mixed, in any order",
    "test_rows_equal_a_chain_of_loaders": "LoRA stack equals a chain of loaders, bit for bit",
    "test_strength_zero_is_the_model_without": "strength 0 equals no LoRA, bit for bit",
    "test_the_same_file_with_both_signs_is_none": "+s and -s equals no LoRA, bit for bit",
    "test_off_on_off_on": "off, on, off, on: the same pictures, bit for bit",
    "test_another_strength_moves_nothing": "another strength moves no weight",
    "test_adapters_of_all_kinds_in_any_order": "adapters of all kinds together, in any order",
}
STATES = {
    "test_unloading_leaves_nothing_behind": "unload all and load again",
    "test_detach_and_again": "detach and load again",
    "test_two_models_in_turn": "two models in turn",
    "test_partial_load_and_unload": "partial load, partial unload, full load",
    "test_a_partly_loaded_model": "another LoRA on a partly loaded model",
    "test_changes_of_all_kinds": "another LoRA on a loaded model, without a reload",
    "test_a_lora_as_hook_equals_the_lora": "LoRA as a hook",
    "test_a_hook_on_top_of_a_lora": "LoRA hook on top of a LoRA",
    "test_a_scheduled_hook_follows_its_keyframes": "LoRA hook with keyframes",
    "test_what_the_host_saves_is_loaded_by_us": "ModelSave, with LoRA and without, loaded and not",
    "test_a_checkpoint_with_text_encoder_and_autoencoder_is_loaded_by_us": "CheckpointSave with CLIP and VAE",
    "test_out_of_memory_in_a_step_leaves_the_next_prompt_right": "out of memory in a step, then the next prompt",
    "test_merging_from_us_into_a_dense_model": "merging into a BF16 model, with LoRA and without",
    "test_the_host_counts_what_loras_take": "the host's figure for the size, LoRAs included",
    "test_a_partly_loaded_model_counts_factors_with_their_layers": "the host's figure for a partly loaded model",
}


class Collector:
    """A pytest plugin: outcomes by table, row and column."""

    def __init__(self):
        self.tables = {name: defaultdict(dict) for name in ("features", "formats", "states")}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = (yield).get_result()
        if report.when != "call" and not report.failed:
            return
        place = self._place(item)
        if place is not None:
            table, row, column, text = place
            cell = self.tables[table][row]
            cell[column] = "no" if report.failed or cell.get(column) == "no" else text

    def _place(self, item) -> tuple[str, str, str, str] | None:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        name, file = item.originalname, item.path.name
        if "feature" in parameters:
            column = "PixArt" if file.startswith("test_pixart") else "FLUX"
            lacks = "lacks" in name
            text = f"no: {PIXART_LACKS if column == 'PixArt' else FLUX_LACKS}" if lacks else "yes"
            return "features", parameters["feature"], column, text
        if "state" in parameters:
            return "states", parameters["state"], "PixArt", "yes"
        if name == "test_every_spelling":
            return "formats", f"LoRA file: {parameters['spelling']}", "FLUX", "yes"
        if name == "test_every_adapter_equals_the_hosts_own_merge":
            return "formats", f"adapter: {parameters['kind']}", "FLUX", "yes"
        for table, rows in (("formats", FORMATS), ("states", STATES)):
            if name in rows:
                return table, rows[name], "FLUX", "yes"
        return None

    def markdown(self) -> str:
        features = _table(self.tables["features"], "Feature of ComfyUI", ("FLUX", "PixArt"))
        formats = _table(self.tables["formats"], "LoRAs", ("FLUX",))
        states = _table(self.tables["states"], "State and memory", ("FLUX", "PixArt"))
        return "\n\n".join((features, formats, states)) + "\n"


def _table(rows: dict[str, dict[str, str]], title: str, columns: tuple[str, ...]) -> str:
    lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {row} | {' | '.join(cells.get(column, '') for column in columns)} |" for row, cells in rows.items()]
    return "\n".join(lines)


def main() -> int:
    collector = Collector()
    code = pytest.main(["-q", "--rootdir", str(ROOT), *(str(ROOT / test) for test in TESTS)], plugins=[collector])
    text = collector.markdown()
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
