// The picture of each layer of paint, drawn from its objects: strokes, texts and pictures, in pixels of its surface.

import { getStroke } from "perfect-freehand";
import { drawInMesh, drawInQuad, isParallelogram } from "editor/quad.js";
import { colorMatrix, moveObject } from "editor/project.js";

const TEXT_PX = 100; // Size at which texts are laid out.
const WARPED_TEXT = 2; // Pixels of a text that is warped, per pixel of its layout.
const LINE_HEIGHT = 1.2;
const SOFT_BLUR = 0.28; // Blur of the softest stroke, as a share of its width: its middle is opaque, its rim fades out.
const LEAST_BLUR_PX = 1; // Browsers draw no shadow at all for less.
const AWAY_PX = 20000; // The shape of a soft stroke is drawn that far outside, and only its shadow is seen.

export class Raster {
  // pictures: gives the bitmap of a source, or null while it is loading, see `Pictures`.
  constructor(surfaces, pictures) {
    window.Konva.pixelRatio = 1;
    this.pictures = pictures;
    this.stages = surfaces.map((surface) =>
      surface ? new window.Konva.Stage({ container: document.createElement("div"), width: surface.width, height: surface.height }) : null,
    );
    this.layers = new Map();
  }

  // Draw a layer again if its objects have changed. extra: an object that is being drawn. Return whether it changed.
  update(layer, extra = null) {
    if (!this.stages[layer.layer]) return false; // No frame shows that layer of the video any more.
    const objects = extra ? [...layer.objects, extra] : layer.objects;
    let entry = this.layers.get(layer.id);
    if (entry && entry.target !== layer.layer) {
      this.remove(layer.id);
      entry = undefined;
    }
    if (!entry) {
      if (!objects.length) return false;
      entry = { target: layer.layer, konva: new window.Konva.Layer(), nodes: new Map(), objects: null };
      this.stages[layer.layer].add(entry.konva);
      this.layers.set(layer.id, entry);
    }
    if (entry.objects === layer.objects && !extra && !entry.isWaiting && !entry.hadExtra) return false;
    entry.objects = layer.objects;
    entry.hadExtra = extra !== null;
    entry.isWaiting = false;
    const seen = new Set();
    objects.forEach((object, order) => {
      seen.add(object.id);
      let node = entry.nodes.get(object.id);
      if (!node || node.drawn !== object) {
        node?.shape.destroy();
        node = { drawn: object, shape: this.makeShape(object, entry), box: boxOf(object) };
        entry.nodes.set(object.id, node);
        entry.konva.add(node.shape);
      }
      node.shape.zIndex(order);
    });
    for (const [id, node] of entry.nodes) {
      if (seen.has(id)) continue;
      node.shape.destroy();
      entry.nodes.delete(id);
    }
    entry.konva.draw();
    return true;
  }

  makeShape(object, entry) {
    return new window.Konva.Shape({
      name: object.id,
      opacity: object.opacity ?? 1,
      globalCompositeOperation: object.erase ? "destination-out" : "source-over",
      fill: "black",
      sceneFunc: (context) => {
        if (!drawObject(context._context, object, this.pictures)) entry.isWaiting = true;
      },
      hitFunc: (context, shape) => {
        context.beginPath();
        outlineOf(object).forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
        context.closePath();
        context.fillStrokeShape(shape);
      },
    });
  }

  // Return the canvas of a layer; null if it is empty.
  canvas(id) {
    const entry = this.layers.get(id);
    return entry && entry.nodes.size ? entry.konva.getNativeCanvasElement() : null;
  }

  // Return the box [left, top, right, bottom] around everything on a layer, in pixels of its surface.
  bounds(id) {
    const boxes = [...this.layers.get(id).nodes.values()].map((node) => node.box);
    return [0, 1, 2, 3].map((side) => Math[side < 2 ? "min" : "max"](...boxes.map((box) => box[side])));
  }

  // Return the id of the uppermost object of a layer at a place; null if there is none.
  hit(id, [x, y]) {
    const shape = this.layers.get(id)?.konva.getIntersection({ x, y });
    return shape ? shape.name() : null;
  }

  // Forget the layers that are not among these, and return their ids.
  keepOnly(ids) {
    const gone = [...this.layers.keys()].filter((id) => !ids.includes(id));
    for (const id of gone) this.remove(id);
    return gone;
  }

  remove(id) {
    this.layers.get(id)?.konva.destroy();
    this.layers.delete(id);
  }

  destroy() {
    for (const stage of this.stages) stage?.destroy();
  }
}

// Return what the compositor draws of the layers of a project. fileParts: the pictures of files, by name.
export function layersToDraw(layers, fileParts) {
  return layers
    .filter((layer) => layer.visible && layer.opacity > 0)
    .flatMap((layer) => {
      if (layer.kind === "file")
        return (fileParts.get(layer.picture) ?? []).map((part) => ({ ...layer, id: part.id, blend: part.blend ?? layer.blend }));
      if (layer.kind !== "recolor") return [layer];
      return [{ ...layer, adjustment: colorMatrix(layer.hue, layer.saturation, layer.brightness) }];
    });
}

// Change the colours of what a 2D context shows, as a recolour layer does. mask: where; null: everywhere.
export function recolorCanvas(context, layer, mask) {
  const { width, height } = context.canvas;
  const changed = new OffscreenCanvas(width, height);
  const own = changed.getContext("2d");
  if (mask) own.drawImage(mask, 0, 0, width, height);
  own.globalCompositeOperation = mask ? "source-in" : "source-over";
  own.filter = `hue-rotate(${layer.hue}deg) saturate(${layer.saturation}) brightness(${layer.brightness})`;
  own.drawImage(context.canvas, 0, 0);
  context.globalCompositeOperation = "source-over";
  context.globalAlpha = layer.opacity;
  context.drawImage(changed, 0, 0);
}

// Draw an object; returns false while its picture is still loading.
function drawObject(context, object, pictures) {
  context.globalCompositeOperation = object.erase ? "destination-out" : "source-over";
  if (object.type === "stroke") {
    drawStroke(context, object);
    return true;
  }
  if (object.type === "text") {
    drawText(context, object);
    return true;
  }
  const picture = pictures.get(object.source);
  if (!picture) return false;
  drawWarped(context, picture, picture.width, picture.height, object);
  return true;
}

// Draw a picture where an object lies: between its corners, or in its mesh, with which it has its form in a frame.
function drawWarped(context, picture, width, height, object) {
  if (object.mesh) drawInMesh(context, picture, width, height, object.mesh);
  else drawInQuad(context, picture, width, height, object.corners);
}

function drawStroke(context, object) {
  const softness = 1 - (object.hardness ?? 1);
  const path = pathOf(strokeOutline(object, 1 - 0.5 * softness));
  context.fillStyle = object.color;
  const blur = object.size * softness * SOFT_BLUR;
  if (blur > LEAST_BLUR_PX) {
    context.shadowColor = object.color;
    context.shadowBlur = blur;
    context.shadowOffsetX = AWAY_PX;
    context.translate(-AWAY_PX, 0);
  }
  context.fill(path);
}

// Return the outline of a stroke as a polygon. factor: of its width.
export function strokeOutline(object, factor = 1) {
  const points = object.points.length > 1 ? object.points : [object.points[0], object.points[0]];
  const hasPressure = points.some((point) => point[2] !== undefined && point[2] !== 0.5);
  return getStroke(points, {
    size: object.size * factor,
    thinning: hasPressure ? 0.6 : 0,
    smoothing: 0.5,
    streamline: object.straight ? 0 : 0.3,
    simulatePressure: false,
    last: true,
  });
}

// Return a smooth closed path through the points of a polygon.
function pathOf(points) {
  const path = new Path2D();
  if (points.length < 3) return path;
  const middle = (a, b) => [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
  path.moveTo(...middle(points[points.length - 1], points[0]));
  points.forEach((point, i) => path.quadraticCurveTo(...point, ...middle(point, points[(i + 1) % points.length])));
  path.closePath();
  return path;
}

function fontOf(object) {
  return `${object.bold ? "bold " : ""}${TEXT_PX}px ${object.font ?? "sans-serif"}`;
}

// Return the width and height of a text as it is laid out.
export function measureText(object) {
  const context = document.createElement("canvas").getContext("2d");
  context.font = fontOf(object);
  const lines = object.text.split("\n");
  const width = Math.max(...lines.map((line) => context.measureText(line).width), 1);
  return [width, lines.length * TEXT_PX * LINE_HEIGHT];
}

function drawText(context, object) {
  const [width, height] = measureText(object);
  const write = (target) => {
    target.font = fontOf(object);
    target.textBaseline = "middle";
    target.fillStyle = object.color;
    object.text.split("\n").forEach((line, i) => target.fillText(line, 0, (i + 0.5) * TEXT_PX * LINE_HEIGHT));
  };
  if (!object.mesh && isParallelogram(object.corners)) {
    const [origin, right, , below] = object.corners;
    context.save();
    context.transform(
      (right[0] - origin[0]) / width, (right[1] - origin[1]) / width,
      (below[0] - origin[0]) / height, (below[1] - origin[1]) / height,
      origin[0], origin[1],
    );
    write(context);
    context.restore();
    return;
  }
  const canvas = document.createElement("canvas");
  canvas.width = Math.ceil(WARPED_TEXT * width);
  canvas.height = Math.ceil(WARPED_TEXT * height);
  const own = canvas.getContext("2d");
  own.scale(WARPED_TEXT, WARPED_TEXT);
  write(own);
  drawWarped(context, canvas, canvas.width, canvas.height, object);
}

// Return the box [left, top, right, bottom] around everything that is drawn of an object.
function boxOf(object) {
  const outline = object.mesh ?? outlineOf(object);
  const [xs, ys] = [0, 1].map((axis) => outline.map((point) => point[axis]));
  const margin = 2 + (object.type === "stroke" ? object.size * (1 - (object.hardness ?? 1)) : 0);
  return [Math.min(...xs) - margin, Math.min(...ys) - margin, Math.max(...xs) + margin, Math.max(...ys) + margin];
}

// Return the polygon by which an object is picked.
export function outlineOf(object) {
  return object.type === "stroke" ? strokeOutline(object) : object.corners;
}

// Return the corners of the frame around an object, by which it is moved: its own, or those of a box.
export function handlesOf(object) {
  if (object.type !== "stroke") return object.corners;
  const points = outlineOf(object);
  const [xs, ys] = [points.map((point) => point[0]), points.map((point) => point[1])];
  const [left, top, right, bottom] = [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
  return [[left, top], [right, top], [right, bottom], [left, bottom]];
}

// Return an object turned by an angle and scaled by a factor around a point.
export function turnAndScale(object, angle, factor, [cx, cy]) {
  const [cos, sin] = [Math.cos(angle) * factor, Math.sin(angle) * factor];
  const move = ([x, y, ...rest]) => [cx + cos * (x - cx) - sin * (y - cy), cy + sin * (x - cx) + cos * (y - cy), ...rest];
  return moveObject(object, move, factor);
}

// Bitmaps of the pictures in a project, loaded when they are first needed.
export class Pictures {
  // load: returns a promise of the blob of a source. onLoad: called when a picture has arrived.
  constructor(load, onLoad, onError) {
    this.load = load;
    this.onLoad = onLoad;
    this.onError = onError;
    this.bitmaps = new Map();
    this.loading = new Map();
  }

  // Wait until pictures are there. Throws an error that names the one that cannot be loaded.
  async wait(sources) {
    for (const source of sources) {
      this.get(source);
      await this.loading.get(source);
      if (!this.bitmaps.get(source)) throw new Error(`the picture ${source.slice(0, 60)} cannot be loaded`);
    }
  }

  get(source) {
    if (!this.bitmaps.has(source)) {
      this.bitmaps.set(source, null);
      const loading = this.load(source)
        .then((blob) => createImageBitmap(blob))
        .then((bitmap) => {
          this.bitmaps.set(source, bitmap);
          this.onLoad();
        })
        .catch((error) => this.onError(source, error));
      this.loading.set(source, loading);
    }
    return this.bitmaps.get(source);
  }

  set(source, bitmap) {
    this.bitmaps.set(source, bitmap);
  }
}
