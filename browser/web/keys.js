// The keys that painters know.

import { TOOLS } from "editor/tools.js";

const ZOOM_STEP = 1.25;

export function makeKeyHandler(app) {
  const toolKeys = Object.fromEntries(TOOLS.filter(Boolean).map((tool) => [tool.key, tool.id]));
  const toggle = (id) => {
    document.getElementById(id).click();
  };
  const setSize = (factor) => {
    app.brush.size = Math.max(1, Math.min(200, Math.round(app.brush.size * factor + (factor > 1 ? 1 : -1))));
    app.brushChanged();
  };
  const setHardness = (step) => {
    app.brush.hardness = Math.max(0, Math.min(1, app.brush.hardness + step));
    app.brushChanged();
  };
  const plain = {
    " ": () => app.togglePlaying(),
    ArrowLeft: () => app.goTo(app.t - 1),
    ArrowRight: () => app.goTo(app.t + 1),
    Home: () => app.goTo(0),
    End: () => app.goTo(app.player.count - 1),
    "[": () => setSize(1 / 1.15),
    "]": () => setSize(1.15),
    "{": () => setHardness(-0.1),
    "}": () => setHardness(0.1),
    "+": () => app.view.zoomAt(app.view.middle, ZOOM_STEP),
    "=": () => app.view.zoomAt(app.view.middle, ZOOM_STEP),
    "-": () => app.view.zoomAt(app.view.middle, 1 / ZOOM_STEP),
    "?": () => app.dialogs.showKeys(),
    "\\": () => app.toggleSecondPane(),
    Delete: () => app.deleteSelected(),
    Backspace: () => app.deleteSelected(),
    Escape: () => app.select(null),
    f: () => app.view.fit(),
    o: () => toggle("onion"),
    w: () => toggle("wipe"),
    k: () => toggle("trust"),
    a: () => {
      const options = [...document.getElementById("paint-on").options].map((option) => option.value);
      const current = app.atlasLayer === null ? "frame" : String(app.atlasLayer);
      app.paintOn(options[(options.indexOf(current) + 1) % options.length]);
    },
  };
  const withControl = {
    z: (event) => (event.shiftKey ? app.redo() : app.undo()),
    y: () => app.redo(),
    d: () => app.duplicateSelected(),
    e: () => app.export(),
    s: () => (app.server ? app.server.flush().catch((error) => app.say(error.message, true)) : app.export()),
  };
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  document.addEventListener("keyup", (event) => {
    if (event.key === " ") app.isSpaceDown = false;
  });
  return (event) => {
    const isTyping = event.target.matches?.("input:not([type=range]):not([type=checkbox]):not([type=radio]), textarea, select") || app.dialogs.dialog.open;
    if (isTyping) return;
    // AltGr, by which many keyboards write [ and {, counts as Ctrl and Alt.
    const isControl = (event.ctrlKey || event.metaKey) && !event.getModifierState("AltGraph");
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const isWidget = event.target.matches?.("button, input, li, [role=separator]");
    if (isWidget && [" ", "Enter"].includes(key)) return;
    if (event.target.matches?.("input[type=range]") && key.startsWith("Arrow")) return;
    let action = isControl ? withControl[key] : plain[key] ?? plain[event.key];
    if (event.shiftKey && moves[key] && app.selection) action = () => app.nudgeSelected(...moves[key]);
    else if (!isControl && toolKeys[key]) action = () => app.setTool(toolKeys[key]);
    else if (!isControl && /^[0-9]$/.test(key)) {
      action = () => {
        app.brush.opacity = key === "0" ? 1 : Number(key) / 10;
        app.brushChanged();
      };
    }
    if (isControl && key === " ") app.isSpaceDown = true;
    if (!action) return;
    event.preventDefault();
    action(event);
  };
}
