// The panels: options of the tool, layers of paint and their properties, layers of the video, and what mends the mapping.

import { BLEND_MODES } from "editor/compositor.js";
import { escapeHtml } from "editor/dialogs.js";
import { makeId } from "editor/project.js";
import { TOOLS } from "editor/tools.js";

const EYE = '<svg viewBox="0 0 24 24" width="16" height="16" fill="none" stroke="currentColor" stroke-width="1.6"><path d="M2.5 12S6 5.5 12 5.5 21.5 12 21.5 12 18 18.5 12 18.5 2.5 12 2.5 12z"/><circle cx="12" cy="12" r="3"/></svg>';
const NO_EYE = '<svg viewBox="0 0 24 24" width="16" height="16" fill="none" stroke="currentColor" stroke-width="1.6" opacity=".5"><path d="M2.5 12S6 5.5 12 5.5 21.5 12 21.5 12M4 20L20 4"/></svg>';
const LOCK = '<svg viewBox="0 0 24 24" width="15" height="15" fill="none" stroke="currentColor" stroke-width="1.6"><rect x="5" y="11" width="14" height="9" rx="1.5"/><path d="M8 11V8a4 4 0 018 0v3"/></svg>';
const NO_LOCK = '<svg viewBox="0 0 24 24" width="15" height="15" fill="none" stroke="currentColor" stroke-width="1.6" opacity=".5"><rect x="5" y="11" width="14" height="9" rx="1.5"/><path d="M8 11V8a4 4 0 017.5-2"/></svg>';
const LAYER_DRAG = "text/x-layer"; // kind of what is dragged in the list of layers
const FONTS = ["sans-serif", "serif", "monospace", "cursive"];
const KIND_NAMES = { paint: "", recolor: "recolour", file: "file" };

function element(html) {
  const template = document.createElement("template");
  template.innerHTML = html.trim();
  return template.content.firstElementChild;
}

function button(label, title, action) {
  const made = element(`<button title="${title}">${label}</button>`);
  made.addEventListener("click", action);
  return made;
}

// A labelled slider in three cells: name, slider, value. `update` shows another value.
function slider(name, range, read, write, show) {
  const [min, max, step] = range;
  const label = element(`<label>${name}</label>`);
  const input = element(`<input type="range" min="${min}" max="${max}" step="${step}" aria-label="${name}">`);
  const output = element("<output></output>");
  let key = null;
  input.addEventListener("pointerdown", () => (key = makeId()));
  input.addEventListener("input", () => write(Number(input.value), key ?? (key = makeId())));
  input.addEventListener("change", () => (key = null));
  const update = () => {
    const value = read();
    if (Number(input.value) !== value) input.value = value;
    output.textContent = show(value);
  };
  return { cells: [label, input, output], update };
}

function choice(name, options, read, write) {
  const label = element(`<label>${name}</label>`);
  const select = element(`<select aria-label="${name}">${options.map(([value, text]) => `<option value="${value}">${escapeHtml(text)}</option>`).join("")}</select>`);
  select.addEventListener("change", () => write(select.value));
  return { cells: [label, select, element("<span></span>")], update: () => (select.value = read()) };
}

function check(name, read, write) {
  const label = element(`<label class="wide"><input type="checkbox"> ${name}</label>`);
  const input = label.querySelector("input");
  input.addEventListener("change", () => write(input.checked));
  return { cells: [label], update: () => (input.checked = read()) };
}

const percent = (value) => `${Math.round(100 * value)} %`;

export class Panels {
  constructor(app) {
    this.app = app;
    this.find = (id) => document.getElementById(id);
    this.makeTools();
    this.makeLayerButtons();
  }

  makeTools() {
    const strip = this.find("tools");
    for (const tool of TOOLS) {
      if (!tool) {
        strip.append(document.createElement("hr"));
        continue;
      }
      const made = button(tool.icon, `${tool.name} (${tool.key.toUpperCase()})`, () => this.app.setTool(tool.id));
      made.dataset.tool = tool.id;
      made.setAttribute("aria-label", tool.name);
      strip.append(made);
    }
  }

  makeLayerButtons() {
    const { app } = this;
    const paint = button("+ Paint", "A new layer of paint", () => app.addPaintLayer());
    const recolor = button("+ Recolour", "Change hue, saturation and brightness of a layer of the video", () => app.addRecolor());
    const file = button("+ File", "Paint in Krita, GIMP or Photoshop, and see it here", () => app.addFile());
    file.hidden = app.isStatic;
    this.find("layer-buttons").append(paint, recolor, file);
  }

  update() {
    this.showTool();
    this.showLayers();
    this.showProperties();
    this.showVideoLayers();
    this.showMend();
    this.find("undo").disabled = !this.app.store.past.length;
    this.find("redo").disabled = !this.app.store.future.length;
  }

  showTool() {
    const { app } = this;
    for (const each of this.find("tools").querySelectorAll("button")) {
      each.setAttribute("aria-pressed", String(each.dataset.tool === app.tool));
    }
    if (this.shownTool !== app.tool) {
      this.shownTool = app.tool;
      this.options = this.makeOptions();
      this.find("options").replaceChildren(...this.options.flatMap((each) => each.cells));
    }
    for (const each of this.options) each.update();
  }

  makeOptions() {
    const { app } = this;
    const { brush } = app;
    const set = (key) => (value) => {
      brush[key] = value;
      app.brushChanged();
    };
    const color = element('<input type="color" aria-label="Colour" title="Colour">');
    color.addEventListener("input", () => set("color")(color.value));
    const colorOption = { cells: [color], update: () => (color.value = brush.color) };
    const size = slider("Size", [1, 200, 1], () => brush.size, set("size"), (value) => `${value} px`);
    const opacity = slider("Opacity", [0.05, 1, 0.05], () => brush.opacity, set("opacity"), percent);
    const hardness = slider("Hardness", [0, 1, 0.05], () => brush.hardness, set("hardness"), percent);
    const follow = check("paints what is under the brush", () => brush.follows, set("follows"));
    const hint = (text) => ({ cells: [element(`<span>${text}</span>`)], update: () => {} });
    const distort = check("corners distort", () => app.isDistorting, (value) => (app.isDistorting = value));
    const objects = app.bake.layers.slice(0, -1).map((layer, i) => [String(i + 1), `this is the ${layer.name}`]);
    const label = choice("", [...objects, ["0", "this is background"]], () => String(brush.maskObject), (value) => set("maskObject")(Number(value)));
    const reach = slider("Reach", [4, Math.min(100, app.bake.clip.width, app.bake.clip.height), 1], () => app.pinReach, (value, key) => app.setPinReach(value, key), (value) => `${value} px`);
    const font = choice("Font", FONTS.map((each) => [each, each]), () => brush.font, set("font"));
    const textSize = slider("Size", [6, 200, 1], () => brush.textSize, set("textSize"), (value) => `${value} px`);
    return {
      select: [hint("Click an object; drag it, its corners (Alt: around the middle), or the round handle to turn it."), distort],
      brush: [colorOption, size, opacity, hardness, follow],
      line: [colorOption, size, opacity, hardness, follow],
      eraser: [size, opacity, hardness, follow],
      text: [colorOption, font, textSize, check("bold", () => brush.bold, set("bold"))],
      picture: [hint("Click where the picture is to lie, or drop a file on the pane."), opacity],
      eyedropper: [colorOption, hint("Click a colour of the picture.")],
      hand: [hint("Drag the view; the wheel zooms.")],
      pin: [hint("Click a point; in a frame where the mark has slipped, drag it to where it belongs."), reach],
      mask: [label, size, hint("Alt: background")],
    }[app.tool];
  }

  showLayers() {
    const { app } = this;
    const list = this.find("layers");
    if (list.contains(document.activeElement) && document.activeElement.tagName === "INPUT") return;
    const focused = list.contains(document.activeElement) ? document.activeElement.dataset.id : null;
    const rows = [...app.store.project.layers].reverse().map((layer) => this.makeLayerRow(layer));
    list.replaceChildren(...(rows.length ? rows : [element('<p class="empty">Paint on the picture, and a layer appears here.</p>')]));
    if (focused) rows.find((row) => row.dataset.id === focused)?.focus();
  }

  makeLayerRow(layer) {
    const { app } = this;
    const target = app.bake.layers[layer.layer].name;
    const kind = KIND_NAMES[layer.kind] ? `${KIND_NAMES[layer.kind]}, ` : "";
    const row = element(`<li tabindex="0" data-id="${escapeHtml(layer.id)}" aria-selected="${layer.id === app.layerId}" class="${layer.visible ? "" : "off"}">
      <button class="icon" data-do="visible" title="Show or hide" aria-pressed="${!layer.visible}" aria-label="${layer.visible ? "Hide" : "Show"}">${layer.visible ? EYE : NO_EYE}</button>
      <button class="icon" data-do="locked" title="Lock or unlock" aria-pressed="${layer.locked}" aria-label="${layer.locked ? "Unlock" : "Lock"}">${layer.locked ? LOCK : NO_LOCK}</button>
      <span class="name" title="Double-click or F2 to rename, Delete to remove, drag to reorder">${escapeHtml(layer.name)}</span><span class="on">${kind}${escapeHtml(target)}</span></li>`);
    row.addEventListener("click", (event) => {
      const key = event.target.closest("button")?.dataset.do;
      if (key) app.store.changeLayer(layer.id, { [key]: !layer[key] });
      else if (app.layerId !== layer.id) app.selectLayer(layer.id); // A second click may rename it.
    });
    row.addEventListener("keydown", (event) => {
      if (event.target !== row) return;
      if (event.key === "Enter") app.selectLayer(layer.id);
      if (event.key === "F2") this.rename(row, layer);
    });
    row.querySelector(".name").addEventListener("dblclick", () => this.rename(row, layer));
    row.draggable = true;
    row.addEventListener("dragstart", (event) => event.dataTransfer.setData(LAYER_DRAG, layer.id));
    row.addEventListener("dragover", (event) => event.dataTransfer.types.includes(LAYER_DRAG) && event.preventDefault());
    row.addEventListener("drop", (event) => {
      event.preventDefault();
      app.store.moveLayer(event.dataTransfer.getData(LAYER_DRAG), app.store.orderOf(layer.id));
    });
    return row;
  }

  rename(row, layer) {
    const input = element(`<input type="text" value="${escapeHtml(layer.name)}" aria-label="Name of the layer">`);
    let isDone = false;
    const finish = (keeps) => {
      if (isDone) return;
      isDone = true;
      input.remove();
      if (keeps && input.value.trim()) this.app.store.changeLayer(layer.id, { name: input.value.trim() });
      this.update();
      this.find("layers").querySelector(`[data-id="${CSS.escape(layer.id)}"]`)?.focus();
    };
    input.addEventListener("blur", () => finish(true));
    input.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter") finish(true);
      if (event.key === "Escape") finish(false);
    });
    row.draggable = false; // The pointer chooses letters now.
    row.querySelector(".name").replaceWith(input);
    input.select();
  }

  showProperties() {
    const { app } = this;
    const layer = app.activeLayer();
    const selected = app.selectedObject();
    const signature = layer ? `${layer.id} ${layer.kind} ${selected ? selected.object.id : ""}` : "";
    if (this.shownLayer !== signature) {
      this.shownLayer = signature;
      this.properties = layer ? this.makeProperties(layer, selected) : [];
      this.find("properties").replaceChildren(...this.properties.flatMap((each) => each.cells));
    }
    for (const each of this.properties) each.update();
    for (const input of this.find("properties").querySelectorAll("input, select, textarea, button")) input.disabled = Boolean(layer?.locked);
  }

  makeProperties({ id, kind }, selected) {
    const { app } = this;
    const { store } = app;
    const read = (key) => () => store.layer(id)?.[key];
    const write = (key) => (value, undoKey) => store.changeLayer(id, { [key]: value }, undoKey && `${key} ${undoKey}`);
    const rows = [slider("Opacity", [0, 1, 0.01], read("opacity"), write("opacity"), percent)];
    if (kind === "recolor") {
      rows.push(slider("Hue", [-180, 180, 1], read("hue"), write("hue"), (value) => `${value}°`));
      rows.push(slider("Saturation", [0, 3, 0.05], read("saturation"), write("saturation"), percent));
      rows.push(slider("Brightness", [0, 2, 0.05], read("brightness"), write("brightness"), percent));
    } else {
      rows.push(choice("Blend", BLEND_MODES.map((each) => [each, each]), read("blend"), (value) => write("blend")(value)));
      rows.push(check("follows the object beyond its outline", read("attached"), (value) => write("attached")(value)));
    }
    const targets = app.bake.layers.flatMap((each, i) => (each.surface ? [[String(i), each.name]] : []));
    rows.push(choice("Lies on", targets, () => String(store.layer(id)?.layer), (value) => app.retarget(id, Number(value))));
    if (selected && selected.layer.id === id) rows.push(...this.makeObjectProperties(selected));
    const buttons = element('<div class="row wide"></div>');
    buttons.append(
      button("↑", "Move the layer up (or drag it in the list)", () => store.moveLayer(id, store.orderOf(id) + 1)),
      button("↓", "Move the layer down (or drag it in the list)", () => store.moveLayer(id, store.orderOf(id) - 1)),
      button("Delete layer", "Delete the layer (undo brings it back)", () => store.removeLayer(id)),
    );
    return [...rows, { cells: [buttons], update: () => {} }];
  }

  makeObjectProperties({ layer, object }) {
    const { store } = this.app;
    const read = (key, otherwise) => () => store.layer(layer.id)?.objects.find((each) => each.id === object.id)?.[key] ?? otherwise;
    const write = (key) => (value, undoKey) => store.changeObject(layer.id, object.id, { [key]: value }, undoKey && `${key} ${undoKey}`);
    const heading = element(`<h2 class="wide">Selected ${escapeHtml(object.type)}</h2>`);
    const rows = [{ cells: [heading], update: () => {} }];
    if (object.type !== "picture" && !object.erase) {
      const color = element('<input type="color" aria-label="Colour of the object">');
      let key = null;
      color.addEventListener("input", () => write("color")(color.value, key ?? (key = makeId())));
      color.addEventListener("change", () => (key = null));
      rows.push({ cells: [element("<label>Colour</label>"), color, element("<span></span>")], update: () => (color.value = read("color", "#ffffff")()) });
    }
    if (object.type === "text") {
      const text = element('<textarea class="wide" rows="2" aria-label="Text"></textarea>');
      text.addEventListener("keydown", (event) => {
        event.stopPropagation();
        if (event.key === "Escape") text.blur();
      });
      let key = makeId();
      const change = (values, undoKey) => this.app.changeText(layer, object.id, values, undoKey);
      text.addEventListener("input", () => change({ text: text.value }, key));
      text.addEventListener("change", () => (key = makeId()));
      rows.push({ cells: [text], update: () => document.activeElement !== text && (text.value = read("text", "")()) });
      rows.push(choice("Font", FONTS.map((each) => [each, each]), read("font", FONTS[0]), (font) => change({ font })));
      rows.push(check("bold", read("bold", false), (bold) => change({ bold })));
    }
    if (object.type === "stroke") {
      rows.push(slider("Width", [1, 300, 1], () => Math.round(read("size", 1)()), write("size"), (value) => `${value} px`));
      rows.push(slider("Hardness", [0, 1, 0.05], read("hardness", 1), write("hardness"), percent));
    }
    rows.push(slider("Opacity", [0.05, 1, 0.05], read("opacity", 1), write("opacity"), percent));
    return rows;
  }

  showVideoLayers() {
    const { app } = this;
    const { hidden } = app.store.project;
    const rows = app.bake.layers.map((layer, i) => {
      const isShown = !hidden.includes(i);
      const row = element(`<li><button class="icon" aria-pressed="${!isShown}" title="${isShown ? "Hide" : "Show"} it in the video" aria-label="${isShown ? "Hide" : "Show"} the ${layer.name}">${isShown ? EYE : NO_EYE}</button>
        <span class="name">${escapeHtml(layer.name)}${isShown ? "" : layer.is_background ? " (black)" : " (removed)"}</span></li>`);
      row.querySelector("button").addEventListener("click", () => app.toggleVideoLayer(i));
      return row;
    });
    this.find("video-layers").replaceChildren(...rows);
  }

  showMend() {
    const { app } = this;
    if (!this.mend) {
      this.mend = this.makeMend();
      this.find("mend").replaceChildren(...this.mend.flatMap((each) => each.cells));
    }
    for (const each of this.mend) each.update();
  }

  makeMend() {
    const { app } = this;
    const { store } = app;
    const counts = element('<p class="wide"></p>');
    const rows = [
      {
        cells: [counts],
        update: () => {
          const { pins, strokes } = store.project.mend;
          const ready = pins.filter((pin) => pin.places.length > 1).length;
          counts.textContent = pins.length || strokes.length
            ? `${pins.length} pin${pins.length === 1 ? "" : "s"} (${ready} dragged), ${strokes.length} mask stroke${strokes.length === 1 ? "" : "s"}`
            : "Does paint slip? Set pins (N). Is the outline wrong? Paint mask strokes (M).";
        },
      },
      ...app.bake.layers.flatMap((layer, i) =>
        layer.surface
          ? [slider(`Stiffness, ${layer.name}`, [-2, 2, 0.25], () => Math.log2(store.project.mend.rigidity[i] ?? 1), (value, key) => store.changeMend({ rigidity: { ...store.project.mend.rigidity, [i]: 2 ** value } }, `rigidity ${i} ${key}`), (value) => `x ${(2 ** value).toFixed(2)}`)]
          : [],
      ),
    ];
    const version = element('<label class="wide">Version <select aria-label="Version"></select></label>');
    const list = version.querySelector("select");
    list.addEventListener("change", () => app.chooseRun(list.value));
    const showVersions = () => {
      version.hidden = app.runs.length < 2;
      list.disabled = app.isBusy;
      list.replaceChildren(...app.runs.map(({ name }, i) => new Option(i ? `refit ${i}` : "before any refit", name, false, name === app.bake.run)));
      list.title = app.bake.run;
    };
    const buttons = element('<div class="row wide"></div>');
    const refit = button("Refit (15 s)", "Train on with pins, mask strokes and dials; the run stays as it is", () => app.refit());
    refit.id = "refit";
    refit.hidden = app.isStatic || !app.canMend;
    buttons.append(refit, button("Clear", "Remove all pins and mask strokes, and turn the dials back", () => store.changeMend({ pins: [], strokes: [], rigidity: {} })));
    const [counted, ...dials] = rows;
    return [counted, { cells: [buttons], update: () => (refit.disabled = app.isBusy) }, { cells: [version], update: showVersions }, ...dials];
  }
}
