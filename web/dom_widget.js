// How this pack puts an element of its own onto a node.

/** Adds an element below the node's other widgets; it is shown, never saved or sent.
 * `height` gives the least height in pixels; further options are those of addDOMWidget. */
export function addElement(node, name, element, height, options = {}) {
  const widget = node.addDOMWidget(name, `svdquant_${name}`, element, { serialize: false, hideOnZoom: false,
    getMinHeight: height, margin: 8, ...options });
  widget.serialize = false;
  // the panel at the right writes its own width here, and the element on the node would follow it
  Object.defineProperty(widget, "width", { get: () => undefined, set: () => {}, configurable: true });
  return widget;
}
