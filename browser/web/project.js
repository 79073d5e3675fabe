// The project: layers of paint with their objects, and what mends the mapping. A state is never changed, only replaced,
// so undoing is going back to an earlier state.

export const DEFAULT_LAYER = { visible: true, locked: false, opacity: 1, blend: "normal", attached: false };

export function makeId() {
  return Math.random().toString(36).slice(2, 10);
}

export function emptyProject(bake) {
  return {
    format: 1,
    clip: bake.clip,
    run: bake.run,
    checkpoint: bake.checkpoint,
    surfaces: bake.layers.map((layer) => layer.surface),
    hidden: [],
    layers: [],
    mend: { pins: [], strokes: [], rigidity: {} },
  };
}

export class Store {
  constructor(project) {
    this.project = project;
    this.past = [];
    this.future = [];
    this.listeners = [];
  }

  onChange(listener) {
    this.listeners.push(listener);
  }

  tell() {
    for (const listener of this.listeners) listener(this.project);
  }

  // Replace the state. Changes with the same key, one after the other, such as those of a slider, are undone at once.
  commit(project, key = null) {
    if (project === this.project) return;
    if (key === null || key !== this.lastKey) {
      this.past.push(this.project);
      this.future = [];
    }
    this.lastKey = key;
    this.project = project;
    this.tell();
  }

  change(values, key = null) {
    this.commit({ ...this.project, ...values }, key);
  }

  undo() {
    this.step(this.past, this.future);
  }

  redo() {
    this.step(this.future, this.past);
  }

  step(from, to) {
    if (!from.length) return;
    to.push(this.project);
    this.project = from.pop();
    this.lastKey = null;
    this.tell();
  }

  // Take another project, for which nothing can be undone.
  replace(project) {
    this.project = project;
    this.past = [];
    this.future = [];
    this.lastKey = null;
    this.tell();
  }

  // Change all states, also those that an undo leads to.
  convert(change) {
    this.past = this.past.map(change);
    this.future = this.future.map(change);
    this.project = change(this.project);
    this.lastKey = null;
    this.tell();
  }

  layer(id) {
    return this.project.layers.find((layer) => layer.id === id);
  }

  addLayer(values, isLowest = false) {
    const layer = { id: makeId(), kind: "paint", objects: [], ...DEFAULT_LAYER, ...values };
    const { layers } = this.project;
    this.change({ layers: isLowest ? [layer, ...layers] : [...layers, layer] }, `new ${layer.id}`);
    return layer;
  }

  changeLayer(id, values, key = null) {
    const layers = this.project.layers.map((layer) => (layer.id === id ? { ...layer, ...values } : layer));
    this.change({ layers }, key);
  }

  removeLayer(id) {
    this.change({ layers: this.project.layers.filter((layer) => layer.id !== id) });
  }

  // Move a layer to another place in the order of painting, counted from the lowest one.
  moveLayer(id, to) {
    const layers = [...this.project.layers];
    const from = this.orderOf(id);
    if (from < 0 || to === from || to < 0 || to >= layers.length) return;
    layers.splice(to, 0, ...layers.splice(from, 1));
    this.change({ layers });
  }

  orderOf(id) {
    return this.project.layers.findIndex((layer) => layer.id === id);
  }

  addObject(layerId, object) {
    const added = { id: makeId(), ...object };
    // A new layer and its first object are undone together.
    this.changeLayer(layerId, { objects: [...this.layer(layerId).objects, added] }, `new ${layerId}`);
    this.lastKey = null;
    return added;
  }

  changeObject(layerId, id, values, key = null) {
    const objects = this.layer(layerId).objects.map((each) => (each.id === id ? { ...each, ...values } : each));
    this.changeLayer(layerId, { objects }, key);
  }

  removeObject(layerId, id) {
    this.changeLayer(layerId, { objects: this.layer(layerId).objects.filter((each) => each.id !== id) });
  }

  changeMend(values, key = null) {
    this.change({ mend: { ...this.project.mend, ...values } }, key);
  }
}

// Return a surface with u and v in other units: atlases that are enlarged change them, see LayerImage.convert_units in
// editing/atlas_file.py.
export function convertUnits(surface, units) {
  const [scale, u, v] = surface.units ?? [1, 0, 0];
  const [newScale, newU, newV] = units ?? [1, 0, 0];
  return {
    ...surface,
    u: (scale * surface.u + u - newU) / newScale,
    v: (scale * surface.v + v - newV) / newScale,
    uv_per_pixel: (surface.uv_per_pixel * scale) / newScale,
    units,
  };
}

// Return the project for another bake of the clip: paint keeps its place (u, v) in the atlases. runs: see `mendForRun`.
export function moveToBake(project, bake, runs) {
  const surfaces = bake.layers.map((layer, i) => layer.surface ?? project.surfaces[i]);
  const layers = project.layers.map((layer) => {
    const [old, to] = [project.surfaces[layer.layer], surfaces[layer.layer]];
    if (layer.surface && to) return { ...layer, surface: convertUnits(layer.surface, to.units) };
    if (!old || !to || !layer.objects) return layer;
    const from = convertUnits(old, to.units);
    const scale = from.uv_per_pixel / to.uv_per_pixel;
    const move = (point) => [
      (from.u + point[0] * from.uv_per_pixel - to.u) / to.uv_per_pixel,
      (from.v + point[1] * from.uv_per_pixel - to.v) / to.uv_per_pixel,
      ...point.slice(2),
    ];
    const isSame = scale === 1 && from.u === to.u && from.v === to.v;
    return isSame ? layer : { ...layer, objects: layer.objects.map((object) => moveObject(object, move, scale)) };
  });
  const mend = mendForRun(project.mend, runs, project.run, bake.run);
  return { ...project, surfaces, layers, mend, run: bake.run, checkpoint: bake.checkpoint };
}

// Return what mends the mapping, after a project goes on with another run: the strokes and dials that only that run
// contains are not needed any more, and those that only the run before contained are needed again.
// runs: {name, from, strokes, rigidity} of all runs; those of a refit are what it has used. from, to: names of runs.
export function mendForRun(mend, runs, from, to) {
  const chainOf = (name) => {
    const chain = [];
    for (let run = runs.find((each) => each.name === name); run && !chain.includes(run); run = runs.find((each) => each.name === run.from)) chain.push(run);
    return chain;
  };
  const [before, after] = [chainOf(from), chainOf(to)];
  const gained = after.filter((run) => !before.includes(run));
  const lost = before.filter((run) => !after.includes(run));
  const known = new Set(gained.flatMap((run) => run.strokes.map(({ id }) => id)));
  const strokes = new Map([...lost.flatMap((run) => run.strokes), ...mend.strokes].map((stroke) => [stroke.id, stroke]));
  const rigidity = { ...mend.rigidity };
  for (const run of gained) for (const [layer, factor] of Object.entries(run.rigidity)) if (rigidity[layer] === factor) delete rigidity[layer];
  for (const run of lost) for (const [layer, factor] of Object.entries(run.rigidity)) if ((rigidity[layer] ?? 1) === 1) rigidity[layer] = factor;
  return { ...mend, rigidity, strokes: [...strokes.values()].filter(({ id }) => !known.has(id)) };
}

// Return an object with all its points moved by a function, and its width multiplied by a factor.
export function moveObject(object, move, scale = 1) {
  if (object.type === "stroke") return { ...object, points: object.points.map(move), size: object.size * scale };
  return { ...object, corners: object.corners.map(move), ...(object.mesh ? { mesh: object.mesh.map(move) } : {}) };
}

// The matrix that turns hue (degrees) and multiplies saturation and brightness, row by row (rendering/blending.py).
export function colorMatrix(hue, saturation, brightness) {
  const luma = [0.213, 0.715, 0.072];
  const turn = [[-0.213, -0.715, 0.928], [0.143, 0.14, -0.283], [-0.787, 0.715, 0.072]];
  const [cos, sin] = [Math.cos((hue * Math.PI) / 180), Math.sin((hue * Math.PI) / 180)];
  const grid = [0, 1, 2];
  const identity = (row, column) => (row === column ? 1 : 0);
  const hueMatrix = grid.map((r) => grid.map((c) => luma[c] + cos * (identity(r, c) - luma[c]) + sin * turn[r][c]));
  const saturate = grid.map((r) => grid.map((c) => luma[c] + saturation * (identity(r, c) - luma[c])));
  return grid.flatMap((r) =>
    grid.map((c) => brightness * grid.reduce((sum, k) => sum + saturate[r][k] * hueMatrix[k][c], 0)),
  );
}
