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
import { layersToDraw, measureText, Pictures, Raster, recolorCanvas } from "editor/raster.js";
import { downloadProject, toPng } from "editor/files.js";
import { listenToPointer, listenToTimeline } from "editor/input.js";
import { listenToServer, projectToSave, startJob } from "editor/session.js";
import { makeMesh } from "editor/quad.js";
import { makeTools } from "editor/tools.js";
import { View } from "editor/view.js";

const ONION_FRAMES = [-4, 4]; // neighbours that the onion view shows
const ONION_OPACITY = 0.28;
const PICTURE_SHARE = 0.15; // of the width of the view that a new picture takes
const TRUST_LEGEND = "Trust map: grey where the mapping agrees with the motion, yellow where it slips by a pixel per frame, red where it slips by four or folds over.";
const PIN_REACH_PX = 12; // as in alignment/pins.py
const MESSAGE_MS = 15000; // A message that is no error goes after this time.
const CANVAS_BLENDS = { normal: "source-over", multiply: "multiply", screen: "screen", overlay: "overlay", color: "color" };

export class App {
  constructor({ bake, project, source, server, pictures, file_parts: inlineParts, project_file: file, job, can_mend: canMend, runs }) {
    this.server = server;
    this.isStatic = server === null;
    this.inlinePictures = pictures ?? {};
    this.inlineParts = inlineParts ?? {};
    this.bake = bake;
    this.source = source;
    this.projectFile = file;
    this.runs = runs ?? [];
    this.store = new Store(project ? moveToBake(project, bake, this.runs) : emptyProject(bake));
    this.firstJob = job;
    this.canMend = canMend ?? true;
    this.find = (id) => document.getElementById(id);
    this.brush = { color: "#e4322b", size: 12, opacity: 1, hardness: 0.9, follows: true, font: "sans-serif", textSize: 36, bold: true, maskObject: 1, pinReach: PIN_REACH_PX };
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
    if (this.server) listenToServer(this);
    for (const layer of this.store.project.layers) if (layer.kind === "file") this.loadFile(layer.picture, true);
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
    const options = [["frame", "Paint on the frame"], ...bake.layers.flatMap((layer, i) => (layer.surface ? [[String(i), `Atlas of ${layer.name}`]] : []))];
    this.find("paint-on").replaceChildren(...options.map(([value, text]) => new Option(text, value)));
    const isGone = this.atlasLayer === null || !bake.layers[this.atlasLayer].surface;
    this.paintOn(isGone ? "frame" : String(this.atlasLayer));
    this.fitPlayer();
  }

  async reopen(state, source) {
    this.source = source;
    this.bake = state.bake;
    this.runs = state.runs;
    this.server.forgetPictures();
    this.openBake();
    this.player.setBake(this.bake);
    if (this.player.sound) this.player.sound.src = source.url("sound.m4a");
    for (const [name, parts] of this.fileParts) this.uploadParts(name, parts);
    this.store.convert((project) => moveToBake(project, this.bake, this.runs));
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
    if (this.server) this.server.saveSoon((savePicture) => projectToSave(this, savePicture));
    this.paintChanged();
    this.panels.update();
  }

  // Draw all layers of paint that have changed, and show the result.
  paintChanged() {
    const { layers } = this.store.project;
    for (const id of this.raster.keepOnly(layers.map((layer) => layer.id))) this.compositor.forgetPaint(id);
    for (const layer of layers) {
      if (layer.kind === "file") continue;
      this.drawLayer(layer, this.extra?.layer.id === layer.id ? this.extra.object : null);
    }
    this.schedule();
  }

  // Draw a layer of paint if it has changed. extra: an object that is being drawn on it.
  drawLayer(layer, extra = null) {
    if (!this.raster.update(layer, extra)) return;
    const canvas = this.raster.canvas(layer.id);
    this.compositor.setPaint(layer.id, canvas, canvas && this.raster.bounds(layer.id));
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
      if (layer.layer !== this.atlasLayer || !layer.visible) continue;
      if (layer.kind === "recolor") {
        recolorCanvas(context, layer, this.raster.canvas(layer.id));
        continue;
      }
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
    this.find("message").textContent = this.find("message").title = text;
    this.find("message").classList.toggle("error", isError);
    clearTimeout(this.messageTimer);
    if (!isError) this.messageTimer = setTimeout(() => this.say("", true), MESSAGE_MS);
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
    if (active?.layer === target && active.kind !== "file") {
      this.say(`“${active.name}” is ${active.locked ? "locked" : "hidden"}; ${active.locked ? "unlock" : "show"} it, or choose another layer.`, true);
      return null;
    }
    const other = this.store.project.layers.findLast((layer) => canTake(layer) && layer.kind === "paint" && layer.layer === target);
    if (other) {
      this.selectLayer(other.id);
      return other;
    }
    if (isErasing) {
      this.say("There is no paint to erase here.");
      return null;
    }
    const added = this.addPaintLayer(target);
    this.say(`“${added.name}”, a new layer on the ${this.bake.layers[target].name}, takes the paint.`);
    return added;
  }

  addPaintLayer(target = this.atlasLayer ?? this.activeLayer()?.layer ?? this.bake.layers.findIndex((layer) => layer.surface)) {
    const numbers = this.store.project.layers.map((layer) => Number(/^Paint (\d+)$/.exec(layer.name)?.[1] ?? 0));
    const layer = this.store.addLayer({ name: `Paint ${Math.max(0, ...numbers) + 1}`, layer: target });
    this.selectLayer(layer.id);
    return layer;
  }

  addRecolor() {
    const target = this.atlasLayer ?? this.bake.layers.findIndex((each) => each.surface);
    // It lies below the paint, which keeps its colours.
    const layer = this.store.addLayer({ kind: "recolor", name: "Recolour", layer: target, hue: 60, saturation: 1, brightness: 1 }, true);
    this.selectLayer(layer.id);
    this.say(`The whole ${this.bake.layers[target].name} is recoloured, below all paint; paint on it to choose a part.`);
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
      await this.loadFile(name, true);
      this.say(`Open ${name} in the folder of ${this.projectFile}, paint in the layer "paint here", and save.`);
    } catch (error) {
      this.say(error.message, true);
    }
  }

  async loadFile(name, isQuiet = false) {
    try {
      const parts = this.server ? await this.server.loadParts(name) : await this.loadInlineParts(name);
      this.uploadParts(name, parts.map((part, i) => ({ ...part, id: `file ${name} ${i}` })));
      if (!isQuiet) this.say(`${name} was read`);
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
    this.brushChanged();
  }

  // Return how far the chosen pin reaches, or else the next one.
  get pinReach() {
    const pin = this.selectedPin();
    return pin ? pin.reach_px ?? PIN_REACH_PX : this.brush.pinReach;
  }

  selectedPin() {
    return this.store.project.mend.pins.find((pin) => pin.id === this.pinId);
  }

  // Set how far pins reach: the one that is chosen, and those that follow.
  setPinReach(reach, key) {
    this.brush.pinReach = reach;
    const { pins } = this.store.project.mend;
    if (this.selectedPin()) this.store.changeMend({ pins: pins.map((pin) => (pin.id === this.pinId ? { ...pin, reach_px: reach } : pin)) }, `reach ${key}`);
    this.brushChanged();
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
    const focusedLayer = document.activeElement?.closest?.("#layers li")?.dataset.id;
    if (this.tool === "pin" && this.pinId) {
      const pins = this.store.project.mend.pins.filter((pin) => pin.id !== this.pinId);
      this.pinId = null;
      this.store.changeMend({ pins });
    } else if (this.selection && !this.activeLayer()?.locked) {
      this.store.removeObject(this.selection.layerId, this.selection.objectId);
    } else if (focusedLayer && this.store.layer(focusedLayer).locked) {
      this.say(`“${this.store.layer(focusedLayer).name}” is locked; unlock it to delete it.`, true);
    } else if (focusedLayer) {
      this.store.removeLayer(focusedLayer);
    }
  }

  duplicateSelected() {
    const selected = this.selectedObject();
    if (!selected) return;
    const { id, ...copy } = selected.object;
    if (selected.layer.locked) return;
    const added = this.store.addObject(selected.layer.id, this.shiftInPicture(selected.layer, copy, 12, 12));
    this.select({ layerId: selected.layer.id, objectId: added.id });
  }

  // Return an object moved by pixels of the picture; by pixels of its surface where the picture does not show it.
  shiftInPicture(layer, object, dx, dy) {
    const shift = (each) => moveObject(each, ([x, y, ...rest]) => [x + dx, y + dy, ...rest]);
    const seen = this.toPictureObject(layer.layer, object);
    return (seen && this.toSurfaceObject(layer.layer, shift(seen))) ?? shift(object);
  }

  nudgeSelected(dx, dy) {
    const selected = this.selectedObject();
    if (!selected) return;
    const { layer, object } = selected;
    if (layer.locked) return;
    const { id, ...moved } = this.shiftInPicture(layer, object, dx, dy);
    this.store.changeObject(layer.id, id, moved, `nudge ${id}`);
  }

  // Return an object with its points in pixels of a layer's surface instead of the picture; null if one is nowhere.
  toSurfaceObject(layer, object) {
    return this.mapPoints(object, (point) => this.pictureToSurface(layer, point));
  }

  // The same the other way round.
  toPictureObject(layer, object) {
    return this.mapPoints(object, (point) => this.surfaceToPicture(layer, point));
  }

  mapPoints(object, convert) {
    let isComplete = true;
    const mapped = moveObject(object, ([x, y, ...rest]) => {
      const place = convert([x, y]);
      isComplete &&= Boolean(place);
      return [...(place ?? [x, y]), ...rest];
    });
    return isComplete ? mapped : null;
  }

  // Change a text or its look (text, font, bold); its letters keep their size.
  changeText(layer, id, values, key) {
    const object = this.store.layer(layer.id).objects.find((each) => each.id === id);
    const changed = { ...object, ...values };
    if (!changed.text.trim()) return;
    const [before, after] = [measureText(object), measureText(changed)];
    const { mesh, ...flat } = object;
    const seen = this.toPictureObject(layer.layer, flat);
    const [origin, right, , below] = (seen ?? flat).corners;
    const across = [0, 1].map((axis) => ((right[axis] - origin[axis]) * after[0]) / before[0]);
    const down = [0, 1].map((axis) => ((below[axis] - origin[axis]) * after[1]) / before[1]);
    const at = (a, b) => [0, 1].map((axis) => origin[axis] + a * across[axis] + b * down[axis]);
    const corners = [at(0, 0), at(1, 0), at(1, 1), at(0, 1)];
    const placed = seen && this.toSurfaceObject(layer.layer, this.withForm({ ...changed, corners }));
    this.store.changeObject(layer.id, id, { ...values, corners: placed?.corners ?? corners, mesh: placed?.mesh }, key);
  }

  // Return an object, in pixels of the picture, with a mesh that gives it its form in the frame that is shown. An atlas
  // needs none, because the corners say everything there.
  withForm(object) {
    if (object.type === "stroke") return object;
    const { mesh, ...rest } = object;
    return { ...rest, mesh: this.isOnFrame() ? makeMesh(object.corners) : null };
  }

  // Place an object of a width and height, in pixels of the picture, with its center at a place.
  placeQuad(layer, [x, y], [width, height], object) {
    const [w, h] = [width / 2, height / 2];
    const corners = [[x - w, y - h], [x + w, y - h], [x + w, y + h], [x - w, y + h]];
    const placed = this.toSurfaceObject(layer.layer, this.withForm({ ...object, corners }));
    if (!placed) {
      this.say("The object is not in this frame; choose another frame.", true);
      return;
    }
    const added = this.store.addObject(layer.id, placed);
    this.setTool("select");
    this.select({ layerId: layer.id, objectId: added.id });
  }

  async placePicture(file, place) {
    try {
      const { blob, bitmap } = await toPng(file);
      const layer = this.layerForPaint(place);
      if (!layer) return;
      const source = this.server ? (await this.server.addPicture(blob, file.name)).picture : await dataUrl(blob);
      if (!this.store.layer(layer.id)) return; // It was undone meanwhile.
      this.pictures.set(source, bitmap);
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
    if (this.isDragging) return; // What is dragged is placed in the frame in which it was taken.
    this.player.seek(t);
    this.t = this.player.t;
    this.schedule();
  }

  paintOn(value) {
    this.atlasLayer = value === "frame" ? null : Number(value);
    this.find("paint-on").value = value;
    for (const id of ["onion", "trust"]) this.find(id).disabled = !this.isOnFrame(); // They show frames.
    this.setCanvasSize();
    this.schedule();
  }

  setCanvasSize() {
    const surface = this.atlasLayer === null ? this.bake.clip : this.bake.layers[this.atlasLayer].surface;
    this.view.setSize(surface.width, surface.height);
  }

  // saving and jobs

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

  // Go on with the run as it was before a refit, or after it.
  async chooseRun(name) {
    if (name === this.bake.run) return;
    this.say(`Opening ${name}…`);
    try {
      await this.server.flush();
      await this.server.chooseRun(name);
    } catch (error) {
      this.say(error.message, true);
    }
    this.panels.update();
  }

  startJob(kind, values) {
    return startJob(this, kind, values);
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
    on("trust", "change", () => this.find("trust").checked && this.say(TRUST_LEGEND));
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
    listenToPointer(this);
    listenToTimeline(this);
    new ResizeObserver(() => this.fitPlayer()).observe(this.find("play-stage"));
    document.addEventListener("keydown", makeKeyHandler(this));
    letGoOfChoices();
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

  toggleSecondPane() {
    const pane = this.find("play-pane");
    pane.hidden = !pane.hidden;
    pane.style.display = pane.hidden ? "none" : "";
    this.find("splitter").style.display = pane.hidden ? "none" : "";
  }
}

// A list in which something is chosen gives the keyboard back, unless it is the keyboard that chooses.
function letGoOfChoices() {
  let hasKeys = false;
  document.addEventListener("keydown", (event) => (hasKeys = event.target.matches("select")), true);
  document.addEventListener("pointerdown", () => (hasKeys = false), true);
  document.addEventListener("change", ({ target }) => {
    if (target.matches("select") && !hasKeys && !target.closest("dialog")) target.blur();
  });
}

function dataUrl(blob) {
  return new Promise((done) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.readAsDataURL(blob);
  });
}
