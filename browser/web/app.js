// The state of the page and what its parts do together.

import { Compositor } from "editor/compositor.js";
import { Dialogs } from "editor/dialogs.js";
import { Frames } from "editor/frames.js";
import { makeKeyHandler } from "editor/keys.js";
import { Mapping } from "editor/mapping.js";
import { drawMarks, findHandles, findPins } from "editor/marks.js";
import { Panels } from "editor/panel.js";
import { Player } from "editor/player.js";
import { emptyProject, moveObject, moveToBake, Store } from "editor/project.js";
import { layersToDraw, measureText, Pictures, Raster } from "editor/raster.js";
import { downloadProject, toPng } from "editor/files.js";
import { makeTools } from "editor/tools.js";
import { View } from "editor/view.js";

const ONION_FRAMES = [-4, 4]; // neighbours that the onion view shows
const ONION_OPACITY = 0.28;
const PICTURE_SHARE = 0.25; // of the width of the view that a new picture takes
const CANVAS_BLENDS = { normal: "source-over", multiply: "multiply", screen: "screen", overlay: "overlay", color: "color" };
const JOB_NAMES = { export: "Exporting", refit: "Refitting" };

export class App {
  constructor({ bake, project, source, server, pictures, file_parts: inlineParts, project_file: file, job, can_mend: canMend }) {
    this.server = server;
    this.isStatic = server === null;
    this.inlinePictures = pictures ?? {};
    this.inlineParts = inlineParts ?? {};
    this.bake = bake;
    this.source = source;
    this.projectFile = file;
    this.store = new Store(project ? moveToBake(project, bake) : emptyProject(bake));
    this.firstJob = job;
    this.canMend = canMend ?? true;
    this.find = (id) => document.getElementById(id);
    this.brush = { color: "#e4322b", size: 12, opacity: 1, hardness: 0.9, follows: true, font: "sans-serif", textSize: 36, bold: true, maskObject: 1 };
    this.tool = "brush";
    this.previousTool = "brush";
    this.t = 0; // frame of the pane to paint on
    this.atlasLayer = null; // layer whose atlas is painted on; null: a frame
    this.layerId = this.store.project.layers.at(-1)?.id ?? null;
    this.selection = null; // {layerId, objectId}
    this.pinId = null;
    this.isDistorting = false;
    this.isBusy = false;
    this.wipe = 0.5;
    this.fileParts = new Map(); // of layers that are files, by name
  }

  async begin() {
    this.player = new Player(this.bake, this.makeSound(), (t) => this.showPlayed(t));
    this.view = new View(this.find("paint-stage"), this.find("paint-canvas"), this.find("overlay"));
    this.playView = this.find("play-canvas").getContext("2d");
    this.dialogs = new Dialogs(this.find("dialog"), this.find("picture-file"));
    this.pictures = new Pictures((source) => this.loadPicture(source), () => this.paintChanged(), (source, error) => this.say(`${source}: ${error.message}`, true));
    this.tools = makeTools(this);
    this.openBake();
    this.panels = new Panels(this);
    this.listen();
    this.downloaded = this.store.project; // of a page without the program
    this.store.onChange(() => this.projectChanged());
    if (this.server) this.listenToServer();
    for (const layer of this.store.project.layers) if (layer.kind === "file") this.loadFile(layer.picture);
    this.setTool("brush");
    this.find("title").textContent = this.bake.clip.name;
    document.title = `${this.bake.clip.name}, Layered Neural Atlases`;
    this.say(`${this.bake.clip.frames} frames of ${this.bake.clip.width} x ${this.bake.clip.height}. Paint on the left, the video on the right follows.`);
    await this.frames.load(0);
    this.view.fit();
    this.paintChanged();
    document.body.dataset.ready = "true";
  }

  // a run: the first one, or the one that a refit made

  openBake() {
    const { bake } = this;
    this.compositor?.destroy();
    this.frames?.destroy();
    this.compositor = new Compositor(bake);
    this.mapping = new Mapping(bake);
    this.frames = new Frames(bake, this.source);
    const { compositor } = this;
    this.frames.onForget = (frame) => compositor.forgetFrame(frame);
    this.frames.onLoad = () => this.schedule();
    this.frames.onError = (error) => this.say(error.message, true);
    this.raster?.destroy();
    this.raster = new Raster(bake.layers.map((layer) => layer.surface), this.pictures);
    this.atlases = [];
    bake.layers.forEach(async (layer, i) => {
      if (!layer.surface) return;
      this.atlases[i] = await createImageBitmap(await this.source.blob(layer.surface.image));
      this.compositor.setAtlas(i, this.atlases[i]);
      this.schedule();
    });
    this.find("thumbnails").src = this.source.url("thumbnails.jpg");
    this.find("play-canvas").width = bake.clip.width;
    this.find("play-canvas").height = bake.clip.height;
    const options = [["frame", "Paint on the frame"], ...bake.layers.flatMap((layer, i) => (layer.surface ? [[String(i), `Paint on the atlas of the ${layer.name}`]] : []))];
    this.find("paint-on").replaceChildren(...options.map(([value, text]) => new Option(text, value)));
    if (this.atlasLayer !== null && !bake.layers[this.atlasLayer].surface) this.atlasLayer = null;
    this.find("paint-on").value = this.atlasLayer === null ? "frame" : String(this.atlasLayer);
    this.setCanvasSize();
    this.fitPlayer();
  }

  // usedStrokes, usedDials: mask strokes (by id) and dials (by layer) that are in the new run, and are not needed again.
  async reopen(state, source, usedStrokes = [], usedDials = {}) {
    this.source = source;
    this.bake = state.bake;
    this.server.forgetPictures();
    this.openBake();
    this.player.setBake(this.bake);
    if (this.player.sound) this.player.sound.src = source.url("sound.m4a");
    for (const [name, parts] of this.fileParts) this.uploadParts(name, parts);
    this.store.convert((project) => {
      const moved = moveToBake(project, this.bake);
      const strokes = moved.mend.strokes.filter((stroke) => !usedStrokes.includes(stroke.id));
      const dials = Object.entries(moved.mend.rigidity).filter(([layer, factor]) => usedDials[layer] !== factor);
      return { ...moved, mend: { ...moved.mend, strokes, rigidity: Object.fromEntries(dials) } };
    });
    await this.frames.load(this.t);
    this.paintChanged();
  }

  makeSound() {
    if (this.bake.sound_lead_s === null) return null;
    const sound = new Audio(this.source.url("sound.m4a"));
    sound.preload = "auto";
    this.find("mute").hidden = false;
    return sound;
  }

  async loadPicture(source) {
    if (source.startsWith("data:")) return (await fetch(source)).blob();
    if (this.isStatic) return (await fetch(this.inlinePictures[source])).blob();
    return this.server.loadPicture(source);
  }

  // what is shown

  projectChanged() {
    if (!this.store.layer(this.layerId)) this.layerId = this.store.project.layers.at(-1)?.id ?? null;
    if (this.selection && !this.selectedObject()) this.selection = null;
    if (this.server) this.server.saveSoon((savePicture) => this.projectToSave(savePicture));
    this.paintChanged();
    this.panels.update();
  }

  // Draw all layers of paint that have changed, and show the result.
  paintChanged() {
    const { layers } = this.store.project;
    for (const id of this.raster.keepOnly(layers.map((layer) => layer.id))) this.compositor.forgetPaint(id);
    for (const layer of layers) {
      if (layer.kind === "file") continue;
      const extra = this.extra?.layer.id === layer.id ? this.extra.object : null;
      if (!this.raster.update(layer, extra)) continue;
      const canvas = this.raster.canvas(layer.id);
      this.compositor.setPaint(layer.id, canvas, canvas && this.raster.bounds(layer.id));
    }
    this.schedule();
  }

  schedule() {
    if (this.isScheduled) return;
    this.isScheduled = true;
    requestAnimationFrame(() => {
      this.isScheduled = false;
      if (this.isPaintDirty) this.paintChanged();
      this.isPaintDirty = false;
      this.showPainted();
      if (!this.player.isPlaying) this.showPlayed(this.player.t);
    });
  }

  compose(t, showsTrust = false) {
    const frame = this.frames.get(t);
    if (!frame) {
      this.frames.load(t).catch(() => {});
      return null;
    }
    const { layers, hidden } = this.store.project;
    return this.compositor.draw(frame, layersToDraw(layers, this.fileParts), hidden, showsTrust);
  }

  showPainted() {
    const { context } = this.view;
    if (this.atlasLayer !== null) {
      this.showAtlas(context);
    } else {
      const picture = this.compose(this.t, this.find("trust").checked);
      if (!picture) return;
      context.globalAlpha = 1;
      context.drawImage(picture, 0, 0);
      if (this.find("onion").checked) this.showOnion(context);
    }
    this.drawMarks();
    this.showTime();
  }

  showOnion(context) {
    context.globalAlpha = ONION_OPACITY;
    for (const step of ONION_FRAMES) {
      const t = this.t + step;
      if (t < 0 || t >= this.frames.count) continue;
      const frame = this.frames.get(t);
      if (frame) context.drawImage(frame.picture, 0, 0);
      else this.frames.load(t).catch(() => {});
    }
    context.globalAlpha = 1;
  }

  showAtlas(context) {
    const atlas = this.atlases[this.atlasLayer];
    context.globalAlpha = 1;
    context.globalCompositeOperation = "source-over";
    if (atlas) context.drawImage(atlas, 0, 0);
    for (const layer of this.store.project.layers) {
      if (layer.layer !== this.atlasLayer || !layer.visible || layer.kind === "recolor") continue;
      if (layer.kind !== "file") this.raster.update(layer, this.extra?.layer.id === layer.id ? this.extra.object : null);
      const parts = layer.kind === "file" ? this.fileParts.get(layer.picture) ?? [] : [{ bitmap: this.raster.canvas(layer.id), blend: null }];
      for (const part of parts) {
        if (!part.bitmap) continue;
        context.globalAlpha = layer.opacity;
        context.globalCompositeOperation = CANVAS_BLENDS[part.blend ?? layer.blend];
        context.drawImage(part.bitmap, 0, 0, context.canvas.width, context.canvas.height);
      }
    }
    context.globalCompositeOperation = "source-over";
    context.globalAlpha = 1;
  }

  // Show a frame on the right; returns whether it was there.
  showPlayed(t) {
    const picture = this.compose(t);
    this.frames.prefetch(t);
    if (!picture) return false;
    this.playView.drawImage(picture, 0, 0);
    if (this.find("wipe").checked) {
      const width = Math.round(this.wipe * picture.width);
      if (width > 0) this.playView.drawImage(this.frames.get(t).picture, 0, 0, width, picture.height, 0, 0, width, picture.height);
    }
    this.showTime();
    return true;
  }

  fitPlayer() {
    const [stage, canvas] = [this.find("play-stage"), this.find("play-canvas")];
    const zoom = Math.min((stage.clientWidth - 16) / canvas.width, (stage.clientHeight - 16) / canvas.height);
    const left = (stage.clientWidth - canvas.width * zoom) / 2;
    canvas.style.transform = `translate(${left}px, ${(stage.clientHeight - canvas.height * zoom) / 2}px) scale(${zoom})`;
    this.find("wipe-line").style.left = `${left + this.wipe * canvas.width * zoom}px`;
    this.playArea = { left, width: canvas.width * zoom };
  }

  showTime() {
    const { t, count, isPlaying, rate } = this.player;
    this.find("time").textContent = `frame ${t} of ${count - 1}   ${this.player.timeOf(t).toFixed(2)} s`;
    this.find("cursor").style.left = `${(100 * (t + 0.5)) / count}%`;
    this.find("play").textContent = isPlaying ? "Stop" : "Play";
    this.find("rate").textContent = isPlaying && rate ? `${rate.toFixed(0)} fps` : "";
    this.find("timeline").setAttribute("aria-valuenow", t);
    this.find("timeline").setAttribute("aria-valuemax", count - 1);
  }

  showTimelineMarks() {
    const { pins, strokes } = this.store.project.mend;
    const places = [...pins.flatMap((pin) => pin.places.map(([t]) => [t, ""])), ...strokes.map((stroke) => [stroke.frame, "mask"])];
    const marks = new Map(places.map(([t, kind]) => [`${t} ${kind}`, [t, kind]]));
    this.find("marks").innerHTML = [...marks.values()].map(([t, kind]) => `<i class="${kind}" style="left:${(100 * (t + 0.5)) / this.player.count}%"></i>`).join("");
  }

  drawMarks(pointer = this.pointer) {
    this.pointer = pointer;
    drawMarks(this, pointer);
    this.showTimelineMarks();
  }

  drawMaskStroke(stroke) {
    this.maskStroke = stroke;
    this.drawMarks();
  }

  screenHandles(layer, object) {
    return findHandles(this, layer, object);
  }

  pinMarks() {
    return findPins(this);
  }

  say(text, isError = false) {
    this.find("message").textContent = text;
    this.find("message").classList.toggle("error", isError);
  }

  // places

  isOnFrame() {
    return this.atlasLayer === null;
  }

  pictureToSurface(layer, place) {
    if (!this.isOnFrame()) return this.atlasLayer === layer ? [...place] : null;
    const frame = this.frames.get(this.t);
    return frame && this.bake.layers[layer].surface ? this.mapping.toSurface(frame, layer, place) : null;
  }

  surfaceToPicture(layer, place) {
    if (!this.isOnFrame()) return this.atlasLayer === layer ? place : null;
    const frame = this.frames.get(this.t);
    return frame ? this.mapping.toFrame(frame, layer, place) : null;
  }

  surfaceScale(layer, place) {
    if (!this.isOnFrame()) return 1;
    return this.mapping.scale(this.frames.get(this.t), layer, place);
  }

  // Return the layer of the video that a place of the picture shows most.
  layerUnder([x, y]) {
    if (!this.isOnFrame()) return this.atlasLayer;
    const background = this.bake.layers.length - 1;
    const frame = this.frames.get(this.t);
    const { width, height } = this.bake.clip;
    this.probe ??= new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const [column, row] = [Math.max(0, Math.min(width - 1, Math.round(x))), Math.max(0, Math.min(height - 1, Math.round(y)))];
    for (let object = 0; object < background; object++) {
      if (this.store.project.hidden.includes(object)) continue;
      this.probe.drawImage(frame.alpha, column, row + object * height, 1, 1, 0, 0, 1, 1);
      if (this.probe.getImageData(0, 0, 1, 1).data[0] > 127 && this.bake.layers[object].surface) return object;
    }
    return background;
  }

  // layers and objects

  activeLayer() {
    return this.store.layer(this.layerId);
  }

  selectLayer(id) {
    this.layerId = id;
    if (this.selection?.layerId !== id) this.selection = null;
    this.panels.update();
    this.drawMarks();
  }

  // Return the layer that takes paint at a place: the chosen one if it fits, else another one, or a new one.
  layerForPaint(place, isErasing = false) {
    const active = this.activeLayer();
    const canTake = (layer) => layer && layer.kind !== "file" && !layer.locked && layer.visible;
    const isKept = canTake(active) && (active.attached || active.kind === "recolor" || !this.brush.follows);
    if (isKept && (this.isOnFrame() || active.layer === this.atlasLayer)) return active;
    const target = this.layerUnder(place);
    if (canTake(active) && active.layer === target) return active;
    const other = this.store.project.layers.findLast((layer) => canTake(layer) && layer.kind === "paint" && layer.layer === target);
    if (other) {
      this.selectLayer(other.id);
      return other;
    }
    if (isErasing) {
      this.say("There is no paint to erase here.");
      return null;
    }
    return this.addPaintLayer(target);
  }

  addPaintLayer(target = this.atlasLayer ?? this.activeLayer()?.layer ?? this.bake.layers.findIndex((layer) => layer.surface)) {
    const count = this.store.project.layers.filter((layer) => layer.kind === "paint").length;
    const layer = this.store.addLayer({ name: `Paint ${count + 1}`, layer: target });
    this.selectLayer(layer.id);
    return layer;
  }

  addRecolor() {
    const target = this.atlasLayer ?? this.activeLayer()?.layer ?? this.bake.layers.findIndex((each) => each.surface);
    const layer = this.store.addLayer({ kind: "recolor", name: "Recolour", layer: target, hue: 60, saturation: 1, brightness: 1 });
    this.selectLayer(layer.id);
    this.say("The whole layer is recoloured; paint on it to choose a part.");
  }

  async addFile() {
    try {
      const chosen = await this.dialogs.askFile(await this.server.listFiles(), this.bake.layers);
      if (!chosen) return;
      const name = chosen.name ?? (await this.server.makeFile(chosen.make)).name;
      const target = chosen.layer ?? chosen.make;
      // The file keeps the surface that it is painted over: a refit may choose another one.
      const layer = this.store.addLayer({ kind: "file", name, layer: target, picture: name, surface: this.bake.layers[target].surface });
      this.selectLayer(layer.id);
      await this.loadFile(name);
      this.say(`Open ${name} in the folder of ${this.projectFile}, paint in the layer "paint here", and save.`);
    } catch (error) {
      this.say(error.message, true);
    }
  }

  async loadFile(name) {
    try {
      const parts = this.server ? await this.server.loadParts(name) : await this.loadInlineParts(name);
      this.uploadParts(name, parts.map((part, i) => ({ ...part, id: `file ${name} ${i}` })));
      this.say(`${name} was read`);
    } catch (error) {
      this.say(error.message, true); // For example while it is being saved; the next save is read again.
    }
  }

  loadInlineParts(name) {
    return Promise.all(
      (this.inlineParts[name] ?? []).map(async ({ blend, picture }) => {
        const bitmap = await createImageBitmap(await (await fetch(picture)).blob(), { premultiplyAlpha: "premultiply" });
        return { blend, bitmap };
      }),
    );
  }

  uploadParts(name, parts) {
    for (const part of this.fileParts.get(name) ?? []) this.compositor.forgetPaint(part.id);
    for (const part of parts) this.compositor.setPaint(part.id, part.bitmap);
    this.fileParts.set(name, parts);
    this.schedule();
  }

  // Lay a layer of paint over another atlas. Its objects keep their pixels there, which look the same only by chance.
  retarget(id, target) {
    const layer = this.store.layer(id);
    const frame = this.frames.get(this.t);
    if (!layer.objects?.length) {
      this.store.changeLayer(id, { layer: target, ...(layer.kind === "file" ? { surface: this.bake.layers[target].surface } : {}) });
      return;
    }
    let isComplete = Boolean(frame);
    let scale = 1;
    const move = (point) => {
      const place = frame && this.mapping.toFrame(frame, layer.layer, point);
      const moved = place && this.mapping.toSurface(frame, target, place);
      if (moved) scale = this.mapping.scale(frame, target, place) / this.mapping.scale(frame, layer.layer, place);
      else isComplete = false;
      return moved ? [...moved, ...point.slice(2)] : point;
    };
    const objects = layer.objects.map((object) => moveObject(object, move)).map((object) => (object.size ? { ...object, size: object.size * scale } : object));
    if (isComplete) this.store.changeLayer(id, { layer: target, objects });
    else this.say("This frame does not show all of the paint; go to a frame that does, and choose again.", true);
    this.panels.update();
  }

  toggleVideoLayer(i) {
    const { hidden } = this.store.project;
    this.store.change({ hidden: hidden.includes(i) ? hidden.filter((each) => each !== i) : [...hidden, i] });
  }

  select(selection) {
    this.selection = selection;
    if (selection) this.layerId = selection.layerId;
    this.panels.update();
    this.drawMarks();
  }

  selectPin(id) {
    this.pinId = id;
    this.drawMarks();
  }

  selectedObject() {
    if (!this.selection) return null;
    const layer = this.store.layer(this.selection.layerId);
    const object = layer?.objects?.find((each) => each.id === this.selection.objectId);
    return object ? { layer, object } : null;
  }

  hitObject(place) {
    for (const layer of [...this.store.project.layers].reverse()) {
      if (!layer.visible || layer.locked || layer.kind === "file") continue;
      const surface = this.pictureToSurface(layer.layer, place);
      const objectId = surface && this.raster.hit(layer.id, surface);
      if (objectId) return { layerId: layer.id, objectId };
    }
    return null;
  }

  deleteSelected() {
    if (this.tool === "pin" && this.pinId) {
      const pins = this.store.project.mend.pins.filter((pin) => pin.id !== this.pinId);
      this.pinId = null;
      this.store.changeMend({ pins });
    } else if (this.selection && !this.activeLayer()?.locked) {
      this.store.removeObject(this.selection.layerId, this.selection.objectId);
    }
  }

  duplicateSelected() {
    const selected = this.selectedObject();
    if (!selected) return;
    const { id, ...copy } = selected.object;
    if (selected.layer.locked) return;
    const added = this.store.addObject(selected.layer.id, moveObject(copy, ([x, y, ...rest]) => [x + 12, y + 12, ...rest]));
    this.select({ layerId: selected.layer.id, objectId: added.id });
  }

  nudgeSelected(dx, dy) {
    const selected = this.selectedObject();
    if (!selected) return;
    const { layer, object } = selected;
    if (layer.locked) return;
    const { id, ...moved } = moveObject(object, ([x, y, ...rest]) => [x + dx, y + dy, ...rest]);
    this.store.changeObject(layer.id, id, moved, `nudge ${id}`);
  }

  changeText(layer, id, text) {
    const object = this.store.layer(layer.id).objects.find((each) => each.id === id);
    if (!text.trim() || text === object.text) return;
    const [before, after] = [measureText(object), measureText({ ...object, text })];
    const [origin, right, , below] = object.corners;
    const across = [0, 1].map((axis) => ((right[axis] - origin[axis]) * after[0]) / before[0]);
    const down = [0, 1].map((axis) => ((below[axis] - origin[axis]) * after[1]) / before[1]);
    const at = (a, b) => [0, 1].map((axis) => origin[axis] + a * across[axis] + b * down[axis]);
    this.store.changeObject(layer.id, id, { text, corners: [at(0, 0), at(1, 0), at(1, 1), at(0, 1)] });
  }

  // Place an object of a width and height, in pixels of the picture, with its center at a place.
  placeQuad(layer, [x, y], [width, height], object) {
    const [w, h] = [width / 2, height / 2];
    const corners = [[x - w, y - h], [x + w, y - h], [x + w, y + h], [x - w, y + h]].map((corner) => this.pictureToSurface(layer.layer, corner));
    if (corners.some((corner) => !corner)) {
      this.say("The object is not in this frame; choose another frame.", true);
      return;
    }
    const added = this.store.addObject(layer.id, { ...object, corners });
    this.setTool("select");
    this.select({ layerId: layer.id, objectId: added.id });
  }

  async placePicture(file, place) {
    try {
      const { blob, bitmap } = await toPng(file);
      const source = this.server ? (await this.server.addPicture(blob, file.name)).picture : await dataUrl(blob);
      this.pictures.set(source, bitmap);
      const layer = this.layerForPaint(place);
      const width = PICTURE_SHARE * this.view.canvas.width;
      this.placeQuad(layer, place, [width, (width * bitmap.height) / bitmap.width], { type: "picture", source, opacity: this.brush.opacity });
    } catch (error) {
      this.say(`${file.name}: ${error.message}`, true);
    }
  }

  drawExtra(layer, object) {
    this.extra = layer ? { layer, object } : null;
    this.isPaintDirty = true; // Many points arrive in the time of one frame of the screen; they are drawn together.
    this.schedule();
  }

  pickColor([x, y]) {
    const { data } = this.view.context.getImageData(Math.round(x), Math.round(y), 1, 1);
    if (!data[3]) return;
    this.brush.color = `#${[...data.slice(0, 3)].map((each) => each.toString(16).padStart(2, "0")).join("")}`;
    this.brushChanged();
  }

  // tools and frames

  setTool(id) {
    if (id !== this.tool) this.previousTool = this.tool;
    this.tool = id;
    if (!["select", "hand"].includes(id)) this.selection = null;
    this.find("paint-stage").style.cursor = { hand: "grab", select: "default", text: "text" }[id] ?? "crosshair";
    this.panels.update();
    this.drawMarks();
  }

  brushChanged() {
    this.panels.showTool();
    this.drawMarks();
  }

  goTo(t) {
    this.player.seek(t);
    this.t = this.player.t;
    this.schedule();
  }

  paintOn(value) {
    this.atlasLayer = value === "frame" ? null : Number(value);
    this.find("paint-on").value = value;
    this.setCanvasSize();
    this.schedule();
  }

  setCanvasSize() {
    const surface = this.atlasLayer === null ? this.bake.clip : this.bake.layers[this.atlasLayer].surface;
    this.view.setSize(surface.width, surface.height);
  }

  // saving and jobs

  async projectToSave(savePicture) {
    while (this.extra) await new Promise((done) => setTimeout(done, 100)); // A stroke is being drawn.
    const { project } = this.store;
    const layers = [];
    for (const layer of project.layers) {
      if (layer.kind === "file") {
        layers.push(layer);
        continue;
      }
      await this.pictures.wait(layer.objects.map((object) => object.source).filter(Boolean));
      if (this.raster.update(layer)) this.compositor.setPaint(layer.id, this.raster.canvas(layer.id), this.raster.canvas(layer.id) && this.raster.bounds(layer.id));
      const canvas = layer.objects.length ? this.raster.canvas(layer.id) : null;
      layers.push({ ...layer, picture: canvas ? await savePicture(layer, canvas) : null });
    }
    return { ...project, layers };
  }

  listenToServer() {
    const { server } = this;
    server.onState = (state, message) => this.showSaved(state, message);
    server.onEvent = (event) => this.takeEvent(event);
    server.onReturn = () => this.reconnect();
    server.follow();
    this.showSaved("saved");
    if (this.firstJob) this.takeEvent({ event: "job", ...this.firstJob });
  }

  showSaved(state, message = "") {
    const now = new Date().toLocaleTimeString();
    const texts = { saved: `saved at ${now}`, saving: "saving…", unsaved: "not saved yet", failed: "not saved", lost: "not connected", conflict: "not saved" };
    this.find("saved").textContent = texts[state];
    this.find("saved").title = this.projectFile;
    const banner = this.find("banner");
    if (state === "conflict") {
      banner.innerHTML = "Another tab has changed this project. <button>Take its state</button> <button>Keep this one</button>";
      const [take, keep] = banner.querySelectorAll("button");
      take.onclick = () => this.resolveConflict(false);
      keep.onclick = () => this.resolveConflict(true);
      banner.hidden = false;
    } else if (state === "lost") {
      banner.textContent = `The program has ended, or does not answer. What was saved is in ${this.projectFile}; start it again with the same command, and this page goes on and saves the rest.`;
      banner.hidden = false;
    } else if (state === "failed") {
      banner.textContent = `The project could not be saved: ${message}`;
      banner.hidden = false;
    } else {
      banner.hidden = true;
    }
  }

  async resolveConflict(keepsMine) {
    try {
      const state = await this.server.resolveConflict(keepsMine);
      if (keepsMine) return; // The server says whether that was saved.
      this.store.replace(moveToBake(state.project, this.bake));
      clearTimeout(this.server.timer);
      this.server.isDirty = false;
      for (const layer of state.project.layers) if (layer.kind === "file") this.loadFile(layer.picture);
      this.showSaved("saved");
    } catch (error) {
      this.showSaved("failed", error.message);
    }
  }

  // The program answers again: go on with its state of the run, and save what it does not know.
  async reconnect() {
    try {
      const state = await this.server.readState();
      this.showJob(state.job ?? { state: "none" });
      if (state.bake.fingerprint !== this.bake.fingerprint) await this.reopen(state, new this.source.constructor(state.bake_url));
      this.showSaved(this.server.isBlocked ? "conflict" : this.server.isDirty ? "unsaved" : "saved");
      if (this.server.isDirty) this.server.save();
    } catch (error) {
      this.say(error.message, true);
    }
  }

  async takeEvent(event) {
    if (event.event === "file") {
      const isUsed = this.store.project.layers.some((layer) => layer.kind === "file" && layer.picture === event.name);
      if (isUsed) await this.loadFile(event.name);
      return;
    }
    this.showJob(event);
    const name = JOB_NAMES[event.job];
    if (event.state === "running") this.say(`${name}: ${event.stage}`);
    if (event.state === "cancelled") this.say(`${name} was cancelled; nothing was changed`);
    if (event.state === "failed") this.say(`${name} failed: ${event.message}`, true);
    if (event.state !== "done") return;
    if (event.event === "bake") {
      const state = await this.server.readState();
      await this.reopen(state, new this.source.constructor(state.bake_url), event.used_strokes, event.used_dials);
      this.say(`Refitted: the new run is ${event.run}. The run before stays as it is.`);
    } else {
      this.say(`Exported to ${event.result}`);
      this.dialogs.showResult("Exported", `The edited video is in ${event.result}`);
    }
  }

  showJob(job) {
    this.isBusy = job.state === "running";
    this.find("progress").hidden = this.find("cancel").hidden = !this.isBusy;
    if (this.isBusy) this.find("progress").value = job.progress;
    this.panels.update();
  }

  async startJob(kind, values) {
    if (this.isBusy) {
      this.say("Another job is still running; wait for it, or cancel it.", true);
      return;
    }
    try {
      await this.server.flush();
      await this.server.startJob(kind, values);
    } catch (error) {
      this.say(error.message, true);
    }
  }

  async export() {
    if (this.isStatic) {
      await downloadProject(this);
      return;
    }
    const values = await this.dialogs.askExport(this.bake);
    if (values) await this.startJob("export", values);
  }

  refit() {
    return this.startJob("refit", {});
  }

  // events of the page

  listen() {
    const on = (id, kind, action) => this.find(id).addEventListener(kind, action);
    on("undo", "click", () => this.undo());
    on("redo", "click", () => this.redo());
    on("export", "click", () => this.export());
    on("help", "click", () => this.dialogs.showKeys());
    on("fit", "click", () => this.view.fit());
    on("paint-on", "change", (event) => this.paintOn(event.target.value));
    for (const id of ["onion", "trust", "wipe"]) on(id, "change", () => this.optionChanged());
    on("play", "click", () => this.togglePlaying());
    on("mute", "click", () => this.player.mute());
    on("cancel", "click", () => this.server.cancelJob());
    this.player.onChange = () => {
      this.find("mute").textContent = this.player.isMuted ? "Sound off" : "Sound on";
      this.showTime();
    };
    this.view.onZoom = (zoom) => {
      this.find("zoom").textContent = `${Math.round(100 * zoom)} %`;
      this.drawMarks();
    };
    if (this.isStatic) this.find("export").textContent = "Download project";
    this.listenToPointer();
    this.listenToTimeline();
    new ResizeObserver(() => this.fitPlayer()).observe(this.find("play-stage"));
    document.addEventListener("keydown", makeKeyHandler(this));
    window.addEventListener("beforeunload", (event) => {
      if (this.server ? this.server.hasUnsaved : this.store.project !== this.downloaded) event.preventDefault();
    });
  }

  undo() {
    if (!this.isDragging) this.store.undo();
  }

  redo() {
    if (!this.isDragging) this.store.redo();
  }

  optionChanged() {
    this.find("wipe-line").hidden = !this.find("wipe").checked;
    this.schedule();
  }

  togglePlaying() {
    this.player.toggle();
    if (!this.player.isPlaying) this.goTo(this.player.t);
  }

  listenToPointer() {
    const stage = this.find("paint-stage");
    let active = null;
    let pointer = null; // The first pointer draws; a palm or a second finger does not.
    const end = (action) => (event) => {
      if (event.pointerId !== pointer) return;
      pointer = null;
      this.isDragging = false;
      (active?.[action] ?? active?.up)?.call(active);
      active = null;
    };
    const placeOf = (event) => this.view.toPicture(this.view.screenOf(event));
    stage.addEventListener("pointerdown", (event) => {
      if (pointer !== null || event.button > 1 || !this.frames.get(this.t)) return;
      pointer = event.pointerId;
      this.isDragging = true;
      stage.setPointerCapture(event.pointerId);
      stage.focus({ preventScroll: true });
      active = event.button === 1 || (event.ctrlKey && this.isSpaceDown) ? this.tools.hand : this.tools[this.tool];
      active.down(placeOf(event), event);
      event.preventDefault();
    });
    stage.addEventListener("pointermove", (event) => {
      const events = event.getCoalescedEvents?.() ?? [];
      if (event.pointerId === pointer) for (const each of events.length ? events : [event]) active?.move?.(placeOf(each), each);
      this.drawMarks(this.view.screenOf(event));
    });
    stage.addEventListener("pointerup", end("up"));
    stage.addEventListener("pointercancel", end("cancel"));
    stage.addEventListener("pointerleave", () => this.drawMarks(null));
    stage.addEventListener("wheel", (event) => {
      this.view.zoomAt(this.view.screenOf(event), Math.exp(-event.deltaY * 0.0015));
      event.preventDefault();
    }, { passive: false });
    stage.addEventListener("dragover", (event) => event.preventDefault());
    stage.addEventListener("drop", (event) => {
      event.preventDefault();
      const file = event.dataTransfer.files[0];
      if (file) this.placePicture(file, placeOf(event));
    });
  }

  listenToTimeline() {
    const timeline = this.find("timeline");
    const frameOf = (event) => {
      const box = timeline.getBoundingClientRect();
      return Math.floor(((event.clientX - box.left) / box.width) * this.player.count);
    };
    this.listenToDrag(timeline, (event) => this.goTo(frameOf(event)));
    const line = this.find("wipe-line");
    this.listenToDrag(line, (event) => {
      const box = this.find("play-stage").getBoundingClientRect();
      this.wipe = Math.max(0, Math.min(1, (event.clientX - box.left - this.playArea.left) / this.playArea.width));
      this.fitPlayer();
      this.schedule();
    });
    const splitter = this.find("splitter");
    const setSplit = (share) => {
      this.split = Math.max(0.2, Math.min(0.85, share));
      this.find("paint-pane").style.flex = `${this.split} 1 0`;
      this.find("play-pane").style.flex = `${1 - this.split} 1 0`;
    };
    setSplit(0.5);
    this.listenToDrag(splitter, (event) => {
      const box = splitter.parentElement.getBoundingClientRect();
      setSplit((event.clientX - box.left) / box.width);
    });
    splitter.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -0.05, ArrowRight: 0.05 }[event.key];
      if (!step) return;
      setSplit(this.split + step);
      event.stopPropagation();
    });
  }

  listenToDrag(element, action) {
    element.addEventListener("pointerdown", (event) => {
      element.setPointerCapture(event.pointerId);
      action(event);
    });
    element.addEventListener("pointermove", (event) => {
      if (element.hasPointerCapture(event.pointerId)) action(event);
    });
  }

  toggleSecondPane() {
    const pane = this.find("play-pane");
    pane.hidden = !pane.hidden;
    pane.style.display = pane.hidden ? "none" : "";
    this.find("splitter").style.display = pane.hidden ? "none" : "";
  }
}

function dataUrl(blob) {
  return new Promise((done) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.readAsDataURL(blob);
  });
}
