// Apply LoRAs with one line for each LoRA: switch, name, strength, and buttons to move or remove it.
// The node's own widgets hold the values and are hidden; without this file the page shows them as they are.
import { app } from "../../scripts/app.js";
import { addElement } from "./dom_widget.js";

const NODE = "SVDQuantLoraStack";
const NONE = "None"; // what a row without a file holds
const ROW = 26, GAP = 4, EDGE = 4; // pixels
const NARROWEST = 380;

const WORDS = {
  en: { add: "Add LoRA", on: "on or off", lora: "LoRA", strength: "strength", up: "move up", down: "move down",
    remove: "remove", choose: "choose a LoRA", absent: "not in models/loras" },
  zh: { add: "添加 LoRA", on: "开关", lora: "LoRA", strength: "强度", up: "上移", down: "下移",
    remove: "删除", choose: "选择 LoRA", absent: "models/loras 中没有这个文件" },
};

const STYLE = `
.svdquant-loras { display: flex; flex-direction: column; gap: ${GAP}px; padding: ${EDGE}px 0; font: 12px sans-serif;
  box-sizing: border-box; color: var(--input-text, #ddd); }
.svdquant-loras .row { display: flex; align-items: center; gap: 4px; height: ${ROW}px; flex: none; }
.svdquant-loras .row.off .name, .svdquant-loras .row.off .strength { opacity: 0.45; }
.svdquant-loras button, .svdquant-loras input { box-sizing: border-box; height: ${ROW}px; margin: 0; font: inherit;
  color: inherit; border: 1px solid var(--border-color, #4e4e4e); border-radius: 6px;
  background: var(--comfy-input-bg, #222); }
.svdquant-loras button { cursor: pointer; padding: 0 6px; }
.svdquant-loras button:hover:enabled { filter: brightness(1.3); }
.svdquant-loras button:disabled { opacity: 0.25; cursor: default; }
.svdquant-loras .switch { width: 34px; flex: none; padding: 0; position: relative; border-radius: 13px; }
.svdquant-loras .switch::after { content: ""; position: absolute; top: 5px; left: 5px; width: 14px; height: 14px;
  border-radius: 7px; background: #888; }
.svdquant-loras .switch.on { background: #2e7d6b; }
.svdquant-loras .switch.on::after { left: 13px; background: #fff; }
.svdquant-loras .name { flex: 1; min-width: 0; text-align: left; overflow: hidden; white-space: nowrap;
  text-overflow: ellipsis; }
.svdquant-loras .name.none { font-style: italic; opacity: 0.7; }
.svdquant-loras .name.absent { color: #ff7b72; border-color: #ff7b72; }
.svdquant-loras .strength { width: 62px; flex: none; padding: 0 4px; text-align: right; }
.svdquant-loras .small { width: 20px; flex: none; padding: 0; font-size: 10px; }
.svdquant-loras .add { flex: none; text-align: center; }
`;

function words() {
  const locale = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
  return WORDS[locale.slice(0, 2)] ?? WORDS.en;
}

function element(tag, properties = {}, children = []) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** The lines of one node. `slots` are its hidden widgets, a triple for each line that it can have. */
class Rows {
  constructor(node) {
    this.node = node;
    const byName = new Map(node.widgets.map((widget) => [widget.name, widget]));
    this.shown = byName.get("loras");
    this.slots = [];
    for (let i = 1; byName.has(`loras.lora_${i}`); i++)
      this.slots.push({ on: byName.get(`loras.on_${i}`), lora: byName.get(`loras.lora_${i}`),
        strength: byName.get(`loras.strength_${i}`) });
    this.root = element("div", { className: "svdquant-loras" });
    for (const name of ["pointerdown", "dblclick", "contextmenu"])
      this.root.addEventListener(name, (event) => event.stopPropagation()); // the canvas would move the node
  }

  get count() {
    const used = this.slots.findLastIndex((slot) => slot.lora.value !== NONE) + 1;
    return Math.min(Math.max(Number(this.shown.value) || 1, used), this.slots.length);
  }

  get height() {
    const lines = this.count + (this.count < this.slots.length ? 1 : 0);
    return lines * (ROW + GAP) - GAP + 2 * EDGE;
  }

  set(widget, value) {
    widget.value = value;
    widget.callback?.(value, app.canvas, this.node);
  }

  read(slot) {
    return { on: slot.on.value, lora: slot.lora.value, strength: slot.strength.value };
  }

  write(slot, values) {
    for (const [name, value] of Object.entries(values)) this.set(slot[name], value);
  }

  setCount(count) {
    this.set(this.shown, String(count));
  }

  add() {
    const count = this.count;
    this.write(this.slots[count], { on: true, lora: NONE, strength: 1 });
    this.setCount(count + 1);
    this.changed();
  }

  remove(index) {
    const count = this.count;
    for (let i = index; i + 1 < count; i++) this.write(this.slots[i], this.read(this.slots[i + 1]));
    this.write(this.slots[count - 1], { on: true, lora: NONE, strength: 1 });
    this.setCount(Math.max(count - 1, 1));
    this.changed();
  }

  swap(index, other) {
    const [first, second] = [this.read(this.slots[index]), this.read(this.slots[other])];
    this.setCount(this.count); // a last row that is empty stays
    this.write(this.slots[index], second);
    this.write(this.slots[other], first);
    this.changed();
  }

  choose(index, event) {
    const values = this.files(index);
    new LiteGraph.ContextMenu(values, { event, className: "dark", title: words().choose, scale: 1,
      callback: (value) => { this.set(this.slots[index].lora, value?.content ?? value); this.changed(); } });
  }

  files(index) {
    const widget = this.slots[index].lora;
    const values = widget.options.values;
    return typeof values === "function" ? values(widget, this.node) : values ?? [];
  }

  changed() {
    this.draw();
    this.node.graph?.change?.();
    app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.();
  }

  row(index) {
    const slot = this.slots[index], say = words(), number = index + 1;
    const { on, lora, strength } = this.read(slot);
    const button = (className, text, title, act, disabled = false) =>
      element("button", { type: "button", className, textContent: text, title, disabled, onclick: act,
        ariaLabel: `${number}: ${title}` });
    const flip = button(`switch${on ? " on" : ""}`, "", say.on, () => { this.set(slot.on, !on); this.changed(); });
    flip.setAttribute("role", "switch");
    flip.setAttribute("aria-checked", String(Boolean(on)));
    const absent = lora !== NONE && !this.files(index).includes(lora);
    const name = button(`name${lora === NONE ? " none" : ""}${absent ? " absent" : ""}`, lora, say.lora,
      (event) => this.choose(index, event));
    name.title = absent ? `${lora}: ${say.absent}` : lora;
    const number_ = element("input", { type: "number", className: "strength", step: 0.05, value: strength,
      title: say.strength, ariaLabel: `${number}: ${say.strength}` });
    const { min, max } = slot.strength.options;
    number_.onchange = () => {
      const typed = Number.parseFloat(number_.value);
      this.set(slot.strength, Number.isFinite(typed) ? Math.min(Math.max(typed, min), max) : strength);
      this.changed();
    };
    number_.onkeydown = (event) => { event.stopPropagation(); if (event.key === "Enter") number_.blur(); };
    return element("div", { className: `row${on ? "" : " off"}` }, [flip, name, number_,
      button("small", "▲", say.up, () => this.swap(index, index - 1), index === 0),
      button("small", "▼", say.down, () => this.swap(index, index + 1), index + 1 === this.count),
      button("small", "✕", say.remove, () => this.remove(index))]);
  }

  draw() {
    const count = this.count;
    const lines = Array.from({ length: count }, (_, index) => this.row(index));
    if (count < this.slots.length)
      lines.push(element("button", { type: "button", className: "add", textContent: `+ ${words().add}`,
        ariaLabel: words().add, onclick: () => this.add() }));
    this.root.replaceChildren(...lines);
    this.root.style.minHeight = `${this.height}px`;
    const [width] = this.node.size;
    this.node.setSize([Math.max(width, NARROWEST), this.node.computeSize()[1]]);
    this.node.setDirtyCanvas?.(true, true);
  }
}

app.registerExtension({
  name: "SVDQuant.LoraRows",
  setup() {
    document.head.append(element("style", { textContent: STYLE }));
  },
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const rows = new Rows(node);
    if (!rows.shown || !rows.slots.length) return; // another version of the node: leave it as it is
    for (const widget of [rows.shown, ...rows.slots.flatMap((slot) => Object.values(slot))]) {
      widget.hidden = true;
      widget.options.hidden = true;
    }
    const height = () => rows.height;
    addElement(node, "lora_rows", rows.root, height, { getMaxHeight: height, getHeight: height });
    const configured = node.onConfigure;
    node.onConfigure = function (...given) {
      const result = configured?.apply(this, given);
      rows.draw();
      return result;
    };
    rows.draw();
  },
});
