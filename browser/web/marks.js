// What is drawn over the picture: the frame of the selected object, pins, mask strokes and the brush.

import { handlesOf } from "editor/raster.js";
import { centerOf } from "editor/quad.js";

const ACCENT = "#f0a63c";
const MASK_COLORS = ["#4c9be8", "#f2776b", "#7fc58b", "#c58be0"]; // of background, and of the objects
const TURN_PX = 26; // Distance of the handle that turns an object from its upper edge.

// Return the corners of an object and the handle that turns it, on the screen; null if the picture does not show it.
export function findHandles(app, layer, object) {
  const corners = handlesOf(object).map((corner) => app.surfaceToPicture(layer.layer, corner));
  if (corners.some((corner) => !corner)) return null;
  const screen = corners.map((corner) => app.view.toScreen(corner));
  const center = centerOf(screen);
  const top = centerOf(screen.slice(0, 2));
  const length = Math.hypot(top[0] - center[0], top[1] - center[1]) || 1;
  const turn = [0, 1].map((axis) => top[axis] + (TURN_PX * (top[axis] - center[axis])) / length);
  return { corners: screen, top, turn };
}

// Return the pins with their places on the screen in the frame that is shown.
export function findPins(app) {
  if (!app.isOnFrame()) return [];
  return app.store.project.mend.pins.flatMap((pin) => {
    const own = pin.places.find(([t]) => t === app.t);
    const place = own ? own.slice(1) : predictPin(app, pin);
    return place ? [{ pin, isSet: Boolean(own), screen: app.view.toScreen(place) }] : [];
  });
}

// Return where the mapping sees a pin in the frame that is shown, from the nearest frame in which it was set.
function predictPin(app, pin) {
  const [t, ...place] = pin.places.reduce((best, each) => (Math.abs(each[0] - app.t) < Math.abs(best[0] - app.t) ? each : best));
  const [frame, now] = [app.frames.get(t), app.frames.get(app.t)];
  if (!frame) {
    app.frames.load(t).catch(() => {});
    return null;
  }
  if (!now || !app.bake.layers[pin.layer]?.surface) return null;
  const surface = app.mapping.toSurface(frame, pin.layer, place);
  return surface && app.mapping.toFrame(now, pin.layer, surface);
}

export function drawMarks(app, pointer) {
  const { Konva } = window;
  const shapes = [];
  const selected = app.selectedObject();
  const handles = selected && findHandles(app, selected.layer, selected.object);
  if (handles) shapes.push(...handleShapes(Konva, handles));
  if (app.isOnFrame()) {
    for (const stroke of [...app.store.project.mend.strokes, ...(app.maskStroke ? [app.maskStroke] : [])]) {
      if (stroke.frame === app.t) shapes.push(maskShape(Konva, app, stroke));
    }
  }
  for (const mark of findPins(app)) {
    if (app.tool === "pin" && mark.pin.id === app.pinId) shapes.push(reachShape(Konva, app, mark));
    shapes.push(...pinShapes(Konva, mark, mark.pin.id === app.pinId));
  }
  if (pointer && ["brush", "eraser", "line", "mask"].includes(app.tool)) {
    const radius = Math.max(1, (app.brush.size * app.view.zoom) / 2);
    const circle = { x: pointer[0], y: pointer[1], radius, strokeWidth: 1 };
    shapes.push(new Konva.Circle({ ...circle, stroke: "#000", opacity: 0.6, radius: radius + 1 }), new Konva.Circle({ ...circle, stroke: "#fff" }));
  }
  app.view.drawMarks(shapes);
}

function handleShapes(Konva, { corners, top, turn }) {
  const outline = new Konva.Line({ points: corners.flat(), closed: true, stroke: ACCENT, strokeWidth: 1.5 });
  const stem = new Konva.Line({ points: [...top, ...turn], stroke: ACCENT, strokeWidth: 1.5 });
  const knobs = corners.map(([x, y]) => new Konva.Rect({ x: x - 4, y: y - 4, width: 8, height: 8, fill: "#fff", stroke: ACCENT, strokeWidth: 1.5 }));
  return [outline, stem, ...knobs, new Konva.Circle({ x: turn[0], y: turn[1], radius: 5, fill: "#fff", stroke: ACCENT, strokeWidth: 1.5 })];
}

// The circle within which a pin bends the mapping most.
function reachShape(Konva, app, { screen: [x, y] }) {
  return new Konva.Circle({ x, y, radius: app.pinReach * app.view.zoom, stroke: ACCENT, strokeWidth: 1, dash: [4, 4], opacity: 0.8 });
}

function pinShapes(Konva, { isSet, screen: [x, y] }, isSelected) {
  const line = { stroke: "#000", strokeWidth: 1 };
  return [
    new Konva.Circle({ x, y, radius: 7, stroke: isSelected ? "#fff" : ACCENT, strokeWidth: 2, fill: isSet ? ACCENT : "#0006", dash: isSet ? undefined : [3, 2] }),
    new Konva.Line({ ...line, points: [x - 3, y, x + 3, y] }),
    new Konva.Line({ ...line, points: [x, y - 3, x, y + 3] }),
  ];
}

function maskShape(Konva, app, stroke) {
  const points = stroke.points.flatMap((point) => app.view.toScreen(point));
  return new Konva.Line({
    points: stroke.points.length > 1 ? points : [...points, points[0] + 0.1, points[1]],
    stroke: MASK_COLORS[stroke.object % MASK_COLORS.length],
    strokeWidth: Math.max(1, stroke.size * app.view.zoom),
    lineCap: "round",
    lineJoin: "round",
    opacity: 0.6,
  });
}
