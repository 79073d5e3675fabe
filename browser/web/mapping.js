// From the pixels of a frame to the surface of a layer, which is the picture of its atlas, and back.

import { nodeCoordinate } from "editor/frames.js";

const STEPS = 12; // of Newton's method
const CLOSE_PX = 0.02; // of the surface: the place is found
const NEAR_PX = 0.5; // A place that is not found to this distance is none.
const FAR_UV = 50; // An object that a frame does not show lies at a uv beyond this.

export class Mapping {
  constructor(bake) {
    this.layers = bake.layers;
    this.rows = bake.lattice.rows_px;
    this.columns = bake.lattice.columns_px;
    this.size = [bake.clip.width, bake.clip.height];
  }

  // Return the place on a layer's surface, in its pixels, of the pixel (x, y) of a frame; null where it is nowhere.
  toSurface(frame, layer, [x, y]) {
    const columns = this.columns.length;
    const c = nodeCoordinate(this.columns, x);
    const r = nodeCoordinate(this.rows, y);
    const c0 = Math.max(0, Math.min(columns - 2, Math.floor(c)));
    const r0 = Math.max(0, Math.min(this.rows.length - 2, Math.floor(r)));
    const base = layer * this.rows.length * columns;
    const uv = [0, 0];
    for (const [dr, wr] of [[0, 1 - (r - r0)], [1, r - r0]]) {
      for (const [dc, wc] of [[0, 1 - (c - c0)], [1, c - c0]]) {
        const at = 2 * (base + (r0 + dr) * columns + c0 + dc);
        uv[0] += wr * wc * frame.uv[at];
        uv[1] += wr * wc * frame.uv[at + 1];
      }
    }
    return Math.abs(uv[0]) > FAR_UV ? null : this.uvToSurface(layer, uv);
  }

  uvToSurface(layer, [u, v]) {
    const surface = this.layers[layer].surface;
    return [(u - surface.u) / surface.uv_per_pixel, (v - surface.v) / surface.uv_per_pixel];
  }

  // Return the derivatives [[dx/dx, dx/dy], [dy/dx, dy/dy]] of the surface's pixels by those of the frame.
  jacobian(frame, layer, [x, y]) {
    const [left, right] = [this.toSurface(frame, layer, [x - 1, y]), this.toSurface(frame, layer, [x + 1, y])];
    const [above, below] = [this.toSurface(frame, layer, [x, y - 1]), this.toSurface(frame, layer, [x, y + 1])];
    if (!left || !right || !above || !below) return null;
    return [
      [(right[0] - left[0]) / 2, (below[0] - above[0]) / 2],
      [(right[1] - left[1]) / 2, (below[1] - above[1]) / 2],
    ];
  }

  // Return how many pixels of the surface a pixel of the frame is wide.
  scale(frame, layer, position) {
    const j = this.jacobian(frame, layer, position);
    return j ? Math.sqrt(Math.abs(j[0][0] * j[1][1] - j[0][1] * j[1][0])) || 1 : 1;
  }

  // Return the pixel of a frame that lies at a place of a layer's surface; null if there is none near the frame.
  toFrame(frame, layer, place) {
    let position = this.nearestNode(frame, layer, place);
    if (!position) return null;
    for (let step = 0; step < STEPS; step++) {
      const now = this.toSurface(frame, layer, position);
      const j = this.jacobian(frame, layer, position);
      if (!now || !j) return null;
      const error = [place[0] - now[0], place[1] - now[1]];
      if (Math.hypot(...error) < CLOSE_PX) break;
      const determinant = j[0][0] * j[1][1] - j[0][1] * j[1][0];
      if (Math.abs(determinant) < 1e-9) return null;
      position = [
        position[0] + (j[1][1] * error[0] - j[0][1] * error[1]) / determinant,
        position[1] + (j[0][0] * error[1] - j[1][0] * error[0]) / determinant,
      ];
      if (position.some((each, axis) => Math.abs(each) > 3 * this.size[axis])) return null;
    }
    const found = this.toSurface(frame, layer, position);
    return found && Math.hypot(place[0] - found[0], place[1] - found[1]) < NEAR_PX ? position : null;
  }

  nearestNode(frame, layer, place) {
    const columns = this.columns.length;
    const base = layer * this.rows.length * columns;
    const surface = this.layers[layer].surface;
    const [u, v] = [surface.u + place[0] * surface.uv_per_pixel, surface.v + place[1] * surface.uv_per_pixel];
    let best = Infinity;
    let found = null;
    for (let r = 0; r < this.rows.length; r++) {
      for (let c = 0; c < columns; c++) {
        const at = 2 * (base + r * columns + c);
        const distance = (frame.uv[at] - u) ** 2 + (frame.uv[at + 1] - v) ** 2;
        if (distance < best) {
          best = distance;
          found = [this.columns[c], this.rows[r]];
        }
      }
    }
    return best > FAR_UV ? null : found;
  }
}
