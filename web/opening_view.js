// A template of the pack opens at the view that its file holds, as when it is dragged onto the page. The page fits
// templates into three quarters of the window, which is often too small for it to draw any words, the note's neither.
import { app } from "../../scripts/app.js";

const OURS = "SVDQuant"; // what the types of the pack's nodes begin with

function show(view) {
  const ds = app.canvas?.ds;
  if (!ds || !view?.scale || !view.offset) return;
  ds.scale = view.scale;
  ds.offset[0] = view.offset[0];
  ds.offset[1] = view.offset[1];
  app.canvas.setDirty(true, true);
}

let view = null; // of the template that is being opened

app.registerExtension({
  name: "SVDQuant.OpeningView",
  init() {
    const load = app.loadGraphData?.bind(app);
    if (!load) return;
    app.loadGraphData = (graph, ...others) => {
      const isOurs = graph?.nodes?.some((node) => String(node.type).startsWith(OURS));
      const isTemplate = others[3]?.openSource === "template";
      const restores = app.extensionManager?.setting?.get("Comfy.EnableWorkflowViewRestore") !== false;
      view = isOurs && isTemplate && restores ? structuredClone(graph.extra?.ds ?? null) : null;
      return load(graph, ...others);
    };
  },
  afterConfigureGraph() {
    show(view); // the page has fitted it by now
    view = null;
  },
});
