// The pack's templates in the order in which somebody meets them; ComfyUI lists them as its disk does.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

// as tools/workflow_files/write.py describes them
const ORDER = [
  "flux.1-dev",
  "flux.1-schnell",
  "flux.1-kontext-dev",
  "flux.1-fill-dev",
  "flux.1-canny-dev",
  "flux.1-depth-dev",
  "flux.1-redux-dev",
  "flux.1-dev-controlnet",
  "flux.1-dev-lora-stack",
  "z-image-turbo",
  "krea-2-turbo",
  "qwen-image",
  "qwen-image-edit-2511",
  "flux.2-klein",
  "chroma",
  "sdxl",
  "minimax-h3",
  "environment-check",
  "quantize-your-own-flux",
  "quantize-any-model",
  "quantize-your-own-flux-calibrated",
  "compare-bf16",
  "convert",
  "pixart-sigma",
  "pixart-sigma-quantize",
];

function rank(name) {
  const place = ORDER.indexOf(name);
  return place < 0 ? ORDER.length : place;
}

app.registerExtension({
  name: "SVDQuant.TemplateOrder",
  init() {
    const folder = decodeURIComponent(new URL(import.meta.url).pathname.split("/").at(-2));
    const listed = api.getWorkflowTemplates?.bind(api);
    if (!listed) return; // a page that fetches them in another way keeps its own order
    api.getWorkflowTemplates = async () => {
      const templates = await listed();
      templates[folder]?.sort((one, other) => rank(one) - rank(other) || one.localeCompare(other));
      return templates;
    };
  },
});
