// The tools: what the pointer does on the picture. Each has `down`, `move` and `up`, called with a place in the picture.

import { makeId, moveObject } from "editor/project.js";
import { handlesOf, measureText, turnAndScale } from "editor/raster.js";
import { centerOf, isConvex } from "editor/quad.js";

const NEAR_PX = 9; // Distance on the screen within which a handle or a pin is taken.
const LEAST_STEP_PX = 0.7; // Points of a stroke are at least so far apart, in pixels of the picture.

const icon = (paths) => `<svg viewBox="0 0 24 24" aria-hidden="true">${paths}</svg>`;

export const TOOLS = [
  { id: "select", key: "v", name: "Select and move", icon: icon('<path d="M6 3l12 9-5.5 1L16 19l-2.6 1.3-3.2-6.2L6 18z"/>') },
  { id: "brush", key: "b", name: "Brush", icon: icon('<path d="M20 4c-5 2-9 6-11 10l2 2c4-2 7-6 9-12z"/><path d="M8.5 15.500c-2 0-3 1.5-3 3 0 1-.8 1.5-2 1.5 1.5 1 6.5 1 7-2.5"/>') },
  { id: "eraser", key: "e", name: "Eraser", icon: icon('<path d="M4 15l9-9 6 6-7 7H8z"/><path d="M9 10l6 6M6 20h14"/>') },
  { id: "line", key: "l", name: "Line", icon: icon('<path d="M5 19L19 5"/><circle cx="5" cy="19" r="1.5"/><circle cx="19" cy="5" r="1.5"/>') },
  { id: "text", key: "t", name: "Text", icon: icon('<path d="M5 7V5h14v2M12 5v14M9 19h6"/>') },
  { id: "picture", key: "p", name: "Picture or logo", icon: icon('<rect x="4" y="5" width="16" height="14" rx="1.5"/><circle cx="9" cy="10" r="1.5"/><path d="M5 18l5-5 3 3 3-4 4 5"/>') },
  { id: "eyedropper", key: "i", name: "Eyedropper", icon: icon('<path d="M13 7l4 4M19 5a2.1 2.1 0 00-3 0l-3 3 3 3 3-3a2.1 2.1 0 000-3zM12.5 8.500L5 16v3h3l7.5-7.5"/>') },
  { id: "hand", key: "h", name: "Move the view", icon: icon('<path d="M8 12V6a1.5 1.5 0 013 0v5V4.500a1.5 1.5 0 013 0V11 6a1.5 1.5 0 013 0v8c0 4-2 6-5.5 6S6.5 18 5 14.500c-.8-2 1-3 2-1.500z"/>') },
  null,
  { id: "pin", key: "n", name: "Pin: this is the same place", icon: icon('<circle cx="12" cy="8" r="4"/><path d="M12 12v9"/>') },
  { id: "mask", key: "m", name: "Mask stroke: this is the object, this is not", icon: icon('<path d="M4 12a8 8 0 0116 0 8 8 0 01-16 0z"/><path d="M12 4a8 8 0 010 16z" fill="currentColor"/>') },
];

function distance(a, b) {
  return Math.hypot(a[0] - b[0], a[1] - b[1]);
}

// Brush, eraser and line draw strokes on a layer of paint.
class StrokeTool {
  constructor(app, kind) {
    this.app = app;
    this.kind = kind;
  }

  down(place, event) {
    const { app } = this;
    const layer = app.layerForPaint(place, this.kind === "eraser");
    if (!layer) return;
    const surface = app.pictureToSurface(layer.layer, place);
    if (!surface) return;
    const { brush } = app;
    this.layer = layer;
    this.last = place;
    this.stroke = {
      id: makeId(),
      type: "stroke",
      points: [[...surface, pressureOf(event)]],
      size: brush.size * app.surfaceScale(layer.layer, place),
      color: brush.color,
      opacity: brush.opacity,
      hardness: brush.hardness,
      ...(this.kind === "eraser" ? { erase: true } : {}),
      ...(this.kind === "line" ? { straight: true } : {}),
    };
    app.drawExtra(layer, this.stroke);
  }

  move(place, event) {
    if (!this.stroke || distance(place, this.last) < LEAST_STEP_PX) return;
    const surface = this.app.pictureToSurface(this.layer.layer, place);
    if (!surface) return;
    this.last = place;
    const point = [...surface, pressureOf(event)];
    const points = this.kind === "line" ? [this.stroke.points[0], point] : [...this.stroke.points, point];
    this.stroke = { ...this.stroke, points };
    this.app.drawExtra(this.layer, this.stroke);
  }

  up() {
    if (!this.stroke) return;
    const { id, ...object } = this.stroke;
    this.stroke = null;
    this.app.drawExtra(null, null);
    const isFirst = this.app.store.layer(this.layer.id)?.objects.length === 0;
    this.app.store.addObject(this.layer.id, { id, ...object });
    if (isFirst && this.layer.kind === "recolor") this.app.say("Now only what you paint is recoloured; undo brings the whole back.");
  }

  cancel() {
    this.stroke = null;
    this.app.drawExtra(null, null);
  }
}

function pressureOf(event) {
  return event.pointerType === "pen" ? event.pressure : 0.5;
}

class SelectTool {
  constructor(app) {
    this.app = app;
  }

  down(place, event) {
    const { app } = this;
    const selected = app.selectedObject();
    if (selected) {
      this.grip = this.findGrip(selected, event);
      if (this.grip) {
        this.begin(selected, place);
        return;
      }
    }
    const hit = app.hitObject(place);
    app.select(hit);
    if (!hit) return;
    this.grip = { kind: "move" };
    this.begin(app.selectedObject(), place);
  }

  begin({ layer, object }, place) {
    const { app } = this;
    this.key = makeId();
    this.target = { layer, object };
    // The object is moved as it looks in the picture, so that turning it does not skew it.
    this.handles = handlesOf(object).map((corner) => app.surfaceToPicture(layer.layer, corner));
    const { mesh, ...flat } = object;
    this.seen = app.toPictureObject(layer.layer, flat);
    this.from = place;
    if (!this.seen || this.handles.some((handle) => !handle)) {
      this.target = null;
      app.say("This frame does not show all of the object; go to a frame that does, or to its atlas.", true);
      return;
    }
    this.scale = app.surfaceScale(layer.layer, this.middleOf(place));
    if (layer.locked) app.say(`“${layer.name}” is locked; unlock it to change it.`, true);
  }

  findGrip({ layer, object }, event) {
    const { app } = this;
    const screen = app.view.screenOf(event);
    const handles = app.screenHandles(layer, object);
    if (!handles) return null;
    if (distance(handles.turn, screen) < NEAR_PX) return { kind: "turn" };
    const corner = handles.corners.findIndex((each) => distance(each, screen) < NEAR_PX);
    if (corner >= 0) return { kind: app.isDistorting || event.ctrlKey || event.metaKey ? "distort" : "scale", corner };
    return null;
  }

  move(place, event) {
    if (!this.target || this.target.layer.locked) return;
    const { app } = this;
    const { layer, object } = this.target;
    const moved = this.transform(this.seen, place, event.altKey);
    if (moved.type !== "stroke" && !isConvex(moved.corners)) return;
    const changed = app.toSurfaceObject(layer.layer, app.withForm(moved));
    if (!changed) return;
    if (changed.type === "stroke") changed.size *= app.surfaceScale(layer.layer, this.middleOf(place)) / this.scale;
    app.store.changeObject(layer.id, object.id, changed, this.key);
  }

  // Return the middle of the object in the picture while it is moved.
  middleOf(now) {
    const [x, y] = centerOf(this.handles);
    return this.grip.kind === "move" ? [x + now[0] - this.from[0], y + now[1] - this.from[1]] : [x, y];
  }

  // Return the object, in pixels of the picture, as the pointer has changed it.
  transform(object, now, isAroundCenter) {
    const { from, grip } = this;
    const center = centerOf(this.handles);
    if (grip.kind === "move") return moveObject(object, ([x, y, ...rest]) => [x + now[0] - from[0], y + now[1] - from[1], ...rest]);
    if (grip.kind === "turn") {
      const angle = Math.atan2(now[1] - center[1], now[0] - center[0]) - Math.atan2(from[1] - center[1], from[0] - center[0]);
      return turnAndScale(object, angle, 1, center);
    }
    if (grip.kind === "distort" && object.type !== "stroke") {
      return { ...object, corners: object.corners.map((corner, i) => (i === grip.corner ? now : corner)) };
    }
    const fixed = isAroundCenter ? center : this.handles[(grip.corner + 2) % 4];
    return turnAndScale(object, 0, Math.max(0.02, distance(now, fixed) / Math.max(distance(from, fixed), 1e-6)), fixed);
  }

  up() {
    this.target = null;
  }

  cancel() {
    this.target = null;
  }
}

class TextTool {
  constructor(app) {
    this.app = app;
  }

  async down(place) {
    const { app } = this;
    const text = await app.dialogs.askText();
    if (!text) return;
    const layer = app.layerForPaint(place);
    if (!layer) return;
    const object = { type: "text", text, color: app.brush.color, opacity: app.brush.opacity, font: app.brush.font, bold: app.brush.bold };
    const [width, height] = measureText(object);
    const factor = (app.brush.textSize * 1.2) / (height / text.split("\n").length);
    app.placeQuad(layer, place, [width * factor, height * factor], object);
  }
}

class PictureTool {
  constructor(app) {
    this.app = app;
  }

  async down(place) {
    const { app } = this;
    const file = await app.dialogs.askPicture();
    if (file) await app.placePicture(file, place);
  }
}

class EyedropperTool {
  constructor(app) {
    this.app = app;
  }

  down(place) {
    this.app.pickColor(place);
  }

  move(place) {
    this.app.pickColor(place);
  }

  up() {
    this.app.setTool(this.app.previousTool === "eyedropper" ? "brush" : this.app.previousTool);
  }
}

class HandTool {
  constructor(app) {
    this.app = app;
  }

  down(place, event) {
    this.from = this.app.view.screenOf(event);
  }

  move(place, event) {
    if (!this.from) return;
    const now = this.app.view.screenOf(event);
    this.app.view.pan([now[0] - this.from[0], now[1] - this.from[1]]);
    this.from = now;
    this.app.drawMarks();
  }

  up() {
    this.from = null;
  }
}

function withinFrame([x, y], { width, height }) {
  return [Math.max(0, Math.min(width - 1, x)), Math.max(0, Math.min(height - 1, y))];
}

// A pin is one place of a layer, with its pixel in one frame or in several.
class PinTool {
  constructor(app) {
    this.app = app;
  }

  down(place, event) {
    const { app } = this;
    if (!app.isOnFrame()) {
      app.say("Pins are set on a frame: choose a frame above the picture.");
      return;
    }
    const near = app.pinMarks().find((mark) => distance(mark.screen, app.view.screenOf(event)) < NEAR_PX + 3);
    if (near) {
      this.pin = near.pin.id;
      app.selectPin(near.pin.id);
    } else {
      const layer = app.layerUnder(place);
      const pin = { id: makeId(), layer, places: [[app.t, ...withinFrame(place, app.bake.clip)]], reach_px: app.brush.pinReach };
      app.store.changeMend({ pins: [...app.store.project.mend.pins, pin] });
      app.selectPin(pin.id);
      app.say("Go to a frame where the mark has slipped, and drag it to where it belongs.");
    }
    this.key = makeId();
  }

  move(place) {
    if (!this.pin) return;
    const { app } = this;
    const pins = app.store.project.mend.pins.map((pin) => {
      if (pin.id !== this.pin) return pin;
      const moved = [app.t, ...withinFrame(place, app.bake.clip)];
      // The first place is the one that stays, whatever its frame.
      const isSet = pin.places.some(([t]) => t === app.t);
      return { ...pin, places: isSet ? pin.places.map((each) => (each[0] === app.t ? moved : each)) : [...pin.places, moved] };
    });
    app.store.changeMend({ pins }, this.key);
  }

  up() {
    this.pin = null;
  }
}

class MaskTool {
  constructor(app) {
    this.app = app;
  }

  down(place, event) {
    const { app } = this;
    if (!app.isOnFrame()) {
      app.say("Mask strokes are painted on a frame: choose a frame above the picture.");
      return;
    }
    const label = event.altKey ? 0 : app.brush.maskObject;
    this.stroke = { id: makeId(), frame: app.t, object: label, points: [place], size: app.brush.size };
    app.drawMaskStroke(this.stroke);
  }

  move(place) {
    if (!this.stroke) return;
    this.stroke = { ...this.stroke, points: [...this.stroke.points, place] };
    this.app.drawMaskStroke(this.stroke);
  }

  up() {
    if (!this.stroke) return;
    const strokes = [...this.app.store.project.mend.strokes, this.stroke];
    this.stroke = null;
    this.app.drawMaskStroke(null);
    this.app.store.changeMend({ strokes });
  }

  cancel() {
    this.stroke = null;
    this.app.drawMaskStroke(null);
  }
}

export function makeTools(app) {
  return {
    select: new SelectTool(app),
    brush: new StrokeTool(app, "brush"),
    eraser: new StrokeTool(app, "eraser"),
    line: new StrokeTool(app, "line"),
    text: new TextTool(app),
    picture: new PictureTool(app),
    eyedropper: new EyedropperTool(app),
    hand: new HandTool(app),
    pin: new PinTool(app),
    mask: new MaskTool(app),
  };
}
