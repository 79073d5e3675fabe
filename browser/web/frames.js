// The frames of a baked run: loaded when they are needed, a few ahead, and forgotten when there are too many.

const MOST_BYTES = 600e6; // of the frames that are kept
const BYTES_PER_PIXEL = 14; // bitmaps and textures of a frame and of the opacity of one object
const AHEAD = 12; // frames that are loaded in advance while the video plays

const PICTURE = { premultiplyAlpha: "none", colorSpaceConversion: "none" };

export class Frames {
  constructor(bake, source) {
    this.bake = bake;
    this.source = source;
    this.count = bake.clip.frames;
    this.loaded = new Map(); // in the order of their last use
    this.pending = new Map();
    const { width, height } = bake.clip;
    this.most = Math.max(AHEAD * 2, Math.floor(MOST_BYTES / (width * height * BYTES_PER_PIXEL)));
    this.onLoad = () => {}; // called with the number of each frame that has arrived
    this.onForget = () => {}; // called with each frame that is dropped
    this.onError = () => {};
  }

  // Return a frame that is there already, or undefined.
  get(t) {
    const frame = this.loaded.get(t);
    if (frame) {
      this.loaded.delete(t);
      this.loaded.set(t, frame);
    }
    return frame;
  }

  // Load a frame if it is not there, and return it.
  async load(t) {
    const frame = this.get(t);
    if (frame) return frame;
    if (!this.pending.has(t)) {
      const loading = this.read(t)
        .then((each) => {
          this.pending.delete(t);
          this.keep(t, each);
          return each;
        })
        .catch((error) => {
          this.pending.delete(t);
          this.onError(error);
          throw error;
        });
      this.pending.set(t, loading);
    }
    return this.pending.get(t);
  }

  // Load the frames that are shown next.
  prefetch(t) {
    const count = Math.min(AHEAD, this.count);
    for (let i = 1; i <= count && this.pending.size < 4; i++) {
      const next = (t + i) % this.count;
      if (!this.loaded.has(next) && !this.pending.has(next)) this.load(next).catch(() => {});
    }
  }

  keep(t, frame) {
    this.loaded.set(t, frame);
    for (const [oldest, old] of this.loaded) {
      if (this.loaded.size <= this.most) break;
      this.loaded.delete(oldest);
      this.onForget(old);
      old.picture.close();
      old.alpha.close();
    }
    this.onLoad(t);
  }

  // Forget all frames; those that are on their way are dropped when they arrive.
  destroy() {
    this.most = 0;
    this.onLoad = this.onForget = this.onError = () => {};
    for (const frame of this.loaded.values()) {
      frame.picture.close();
      frame.alpha.close();
    }
    this.loaded.clear();
  }

  async read(t) {
    const name = String(t).padStart(5, "0");
    const [picture, alpha, fields] = await Promise.all([
      this.source.blob(`${name}.jpg`).then((blob) => createImageBitmap(blob, PICTURE)),
      this.source.blob(`${name}.png`).then((blob) => createImageBitmap(blob, PICTURE)),
      this.source.buffer(`${name}.bin`),
    ]);
    return { t, picture, alpha, ...splitFields(this.bake, fields) };
  }
}

// Return the mappings (float32: layer, row, column, u and v), light (bytes: that which is seen, then that behind objects) and trust (bytes) of a frame's file.
function splitFields(bake, buffer) {
  const nodes = bake.lattice.rows_px.length * bake.lattice.columns_px.length;
  const uvCount = bake.layers.length * nodes * 2;
  const lightCount = bake.light ? bake.light.rows_px.length * bake.light.columns_px.length * 6 : 0;
  return {
    uv: new Float32Array(buffer, 0, uvCount),
    light: new Uint8Array(buffer, uvCount * 4, lightCount),
    trust: new Uint8Array(buffer, uvCount * 4 + lightCount, nodes),
  };
}

// Return for each pixel of a side where it lies among the positions of nodes: 2.5 is halfway between nodes 2 and 3.
export function nodeCoordinates(positions, side) {
  const result = new Float32Array(side);
  let node = 0;
  for (let pixel = 0; pixel < side; pixel++) {
    result[pixel] = nodeCoordinate(positions, pixel, node);
    node = Math.floor(result[pixel]);
  }
  return result;
}

// Return where a position in pixels lies among the nodes; beyond the ends it goes on along a line.
export function nodeCoordinate(positions, position, from = 0) {
  let node = Math.min(from, positions.length - 2);
  while (node < positions.length - 2 && position >= positions[node + 1]) node++;
  while (node > 0 && position < positions[node]) node--;
  return node + (position - positions[node]) / (positions[node + 1] - positions[node]);
}
