// What a node of this pack found out stands on the node itself after a run: its report, and for Compare Images
// the two pictures under a slider. Nothing has to be wired for it.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { addElement } from "./dom_widget.js";

const OURS = /^SVDQuant/;
const LINE = 16, PADDING = 12; // pixels
const MOST_LINES = { SVDQuantEnvironmentCheck: 24 }, USUAL_LINES = 5; // longer reports are scrolled
const WIDE = 400, SLIDER = 320;
const CHARACTER = 6.7; // width of one, about

const STYLE = `
.svdquant-text { margin: 0; padding: ${PADDING / 2}px 8px; box-sizing: border-box; overflow: auto; height: 100%;
  font: 11px/${LINE}px monospace; white-space: pre-wrap; overflow-wrap: anywhere; user-select: text; cursor: text;
  color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222); border-radius: 6px; }
.svdquant-slider { position: relative; overflow: hidden; height: 100%; border-radius: 6px; cursor: ew-resize;
  background: #111; }
.svdquant-slider img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
.svdquant-slider .bar { position: absolute; top: 0; bottom: 0; width: 2px; margin-left: -1px; background: #fff;
  box-shadow: 0 0 4px #000; pointer-events: none; }
.svdquant-slider .side { position: absolute; bottom: 6px; padding: 1px 6px; border-radius: 4px; background: #000a;
  color: #fff; font: 11px sans-serif; pointer-events: none; }
`;

function addWidget(node, name, element, height) {
  // without a greatest height: whoever makes the node taller sees more
  const widget = addElement(node, name, element, height);
  for (const kind of ["pointerdown", "wheel"])
    element.addEventListener(kind, (event) => event.stopPropagation()); // to select text, to scroll it
  return widget;
}

function grow(node, width = 0) {
  const [nodeWidth, nodeHeight] = node.size;
  node.setSize([Math.max(nodeWidth, width), Math.max(nodeHeight, node.computeSize()[1])]);
  node.setDirtyCanvas?.(true, true);
}

function showText(node, text) {
  node.svdquantText ??= document.createElement("pre");
  const shown = node.svdquantText;
  const known = Boolean(shown.className);
  if (known && shown.textContent === text) return;
  shown.className = "svdquant-text";
  shown.textContent = text;
  const long = text.split("\n").length > 6;
  const width = Math.max(node.size[0], long ? WIDE : 0);
  const inLine = Math.max(Math.floor((width - 36) / CHARACTER), 20);
  const lines = text.split("\n").reduce((sum, line) => sum + Math.max(Math.ceil(line.length / inLine), 1), 0);
  node.svdquantTextHeight = Math.min(lines, MOST_LINES[node.comfyClass] ?? USUAL_LINES) * LINE + PADDING + 16;
  shown.style.minHeight = `${node.svdquantTextHeight - 16}px`;
  if (!known) addWidget(node, "report", shown, () => node.svdquantTextHeight);
  grow(node, width);
}

function address(picture) {
  return api.apiURL(`/view?${new URLSearchParams(picture)}${app.getRandParam?.() ?? ""}`);
}

function showSlider(node, first, second, names) {
  if (!node.svdquantSlider) {
    const root = document.createElement("div");
    root.className = "svdquant-slider";
    root.style.minHeight = `${SLIDER - 16}px`;
    const [below, above, bar, left, right] = ["img", "img", "div", "div", "div"].map((tag) =>
      root.appendChild(document.createElement(tag)));
    bar.className = "bar";
    left.className = right.className = "side";
    left.style.left = right.style.right = "6px";
    const put = (share) => {
      above.style.clipPath = `inset(0 0 0 ${100 * share}%)`;
      bar.style.left = `${100 * share}%`;
    };
    root.addEventListener("pointermove", (event) => {
      const frame = root.getBoundingClientRect();
      put(Math.min(Math.max((event.clientX - frame.left) / frame.width, 0), 1));
    });
    put(0.5);
    node.svdquantSlider = { below, above, left, right };
    addWidget(node, "slider", root, () => SLIDER);
    grow(node, 360);
  }
  const { below, above, left, right } = node.svdquantSlider;
  [below.src, above.src] = [address(first), address(second)];
  [left.textContent, right.textContent] = names;
}

function show(node, output) {
  if (!output || !OURS.test(node?.comfyClass ?? "")) return;
  const text = Array.isArray(output.text) ? output.text.join("\n") : output.text;
  if (text) showText(node, text);
  if (output.a_images?.length && output.b_images?.length) {
    const value = (name) => node.widgets.find((widget) => widget.name === name)?.value ?? "";
    showSlider(node, output.a_images[0], output.b_images[0], [value("reference_name"), value("image_name")]);
  }
}

app.registerExtension({
  name: "SVDQuant.NodeResults",
  setup() {
    const style = document.createElement("style");
    style.textContent = STYLE;
    document.head.append(style);
  },
  nodeCreated(node) {
    if (!OURS.test(node.comfyClass ?? "")) return;
    const executed = node.onExecuted;
    node.onExecuted = function (output, ...more) {
      const result = executed?.call(this, output, ...more);
      show(this, output);
      return result;
    };
  },
  onNodeOutputsUpdated(outputs) {
    // the page gives a workflow its results back when it is opened again
    for (const [id, output] of Object.entries(outputs ?? {})) show(app.rootGraph?.getNodeById(Number(id)), output);
  },
});
