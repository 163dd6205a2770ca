// A file that was written by a node stands in the lists at once: the page asks for them only when it loads.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const WRITERS = new Set([
  "SVDQuantQuantizeModel",
  "SVDQuantQuantizeTextEncoder",
  "SVDQuantExportModel",
  "SVDQuantCalibrationSave",
]);

app.registerExtension({
  name: "SVDQuant.RefreshModels",
  setup() {
    let wrote = false;
    api.addEventListener("executing", ({ detail }) => {
      const number = typeof detail === "object" ? detail?.node : detail;
      wrote ||= number != null && WRITERS.has(app.rootGraph?.getNodeById(number)?.type);
    });
    api.addEventListener("execution_success", () => {
      if (wrote) app.refreshComboInNodes();
      wrote = false;
    });
  },
});
