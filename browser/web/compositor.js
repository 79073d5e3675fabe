// Draws edited frames with WebGL2, at the working size of the clip.

import { nodeCoordinates } from "editor/frames.js";
import { BASE, PAINT, SHOW, VERTEX } from "editor/shaders.js";

export const BLEND_MODES = ["normal", "multiply", "screen", "overlay", "color"];
const NO_COLOR = [0, 0, 0, 0, 0, 0, 0, 0, 0];

export class Compositor {
  // Throws an error with a remedy if the browser has no WebGL2.
  constructor(bake) {
    this.bake = bake;
    this.canvas = document.createElement("canvas");
    this.canvas.width = bake.clip.width;
    this.canvas.height = bake.clip.height;
    const gl = this.canvas.getContext("webgl2", { antialias: false, alpha: false, preserveDrawingBuffer: true });
    if (!gl) throw new Error("this browser has no WebGL2; use a current Chrome, Edge, Firefox or Safari");
    this.gl = gl;
    gl.getExtension("EXT_color_buffer_float");
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
    this.programs = { base: this.compile(BASE), paint: this.compile(PAINT), show: this.compile(SHOW) };
    this.targets = [this.makeTarget(), this.makeTarget()];
    this.empty = this.makeTexture(gl.RGBA8, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));
    const { width, height } = bake.clip;
    this.rowNodes = this.makeAxis(bake.lattice.rows_px, bake.light?.rows_px, height);
    this.columnNodes = this.makeAxis(bake.lattice.columns_px, bake.light?.columns_px, width);
    this.atlases = bake.layers.map(() => this.empty);
    this.frames = new Map();
    this.paints = new Map(); // textures by the id of a layer of paint
    this.bounds = new Map(); // boxes around what is painted, by the same id
  }

  compile(fragment) {
    const gl = this.gl;
    const program = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) {
      const logs = gl.getAttachedShaders(program).map((shader) => gl.getShaderInfoLog(shader));
      throw new Error(`the graphics card refuses the preview: ${logs.join(" ")} ${gl.getProgramInfoLog(program)}`);
    }
    const places = {};
    for (let i = 0; i < gl.getProgramParameter(program, gl.ACTIVE_UNIFORMS); i++) {
      const name = gl.getActiveUniform(program, i).name;
      places[name.replace("[0]", "")] = gl.getUniformLocation(program, name);
    }
    return { program, places };
  }

  makeTexture(format, width, height, layout, type, data) {
    const gl = this.gl;
    const texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texImage2D(gl.TEXTURE_2D, 0, format, width, height, 0, layout, type, data);
    this.setFilter(gl.NEAREST, gl.NEAREST);
    return texture;
  }

  setFilter(smaller, larger) {
    const gl = this.gl;
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, smaller);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, larger);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
  }

  makeAxis(positions, lightPositions, side) {
    const gl = this.gl;
    const values = new Float32Array(2 * side);
    nodeCoordinates(positions, side).forEach((value, i) => (values[2 * i] = value));
    if (lightPositions) nodeCoordinates(lightPositions, side).forEach((value, i) => (values[2 * i + 1] = value));
    return this.makeTexture(gl.RG32F, side, 1, gl.RG, gl.FLOAT, values);
  }

  // Half floats keep the colours between two layers of paint; cards that cannot draw into them take bytes.
  makeTarget() {
    const gl = this.gl;
    const { width, height } = this.bake.clip;
    const buffer = gl.createFramebuffer();
    for (const [format, type] of [[gl.RGBA16F, gl.HALF_FLOAT], [gl.RGBA8, gl.UNSIGNED_BYTE]]) {
      const texture = this.makeTexture(format, width, height, gl.RGBA, type, null);
      gl.bindFramebuffer(gl.FRAMEBUFFER, buffer);
      gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
      if (gl.checkFramebufferStatus(gl.FRAMEBUFFER) === gl.FRAMEBUFFER_COMPLETE) return { buffer, texture };
    }
    throw new Error("the graphics card cannot draw the preview");
  }

  setAtlas(layer, picture) {
    const gl = this.gl;
    this.atlases[layer] = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, this.atlases[layer]);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, picture);
    this.setFilter(gl.LINEAR, gl.LINEAR);
  }

  // Take the picture of a layer of paint, a canvas or a bitmap; null: it is empty.
  // bounds: [left, top, right, bottom] around what is painted, in its pixels; null: it may be anywhere.
  setPaint(id, picture, bounds = null) {
    this.bounds.set(id, bounds);
    const gl = this.gl;
    if (!picture) {
      this.forgetPaint(id);
      return;
    }
    if (!this.paints.has(id)) this.paints.set(id, gl.createTexture());
    gl.bindTexture(gl.TEXTURE_2D, this.paints.get(id));
    gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, true);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, picture);
    gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
    gl.generateMipmap(gl.TEXTURE_2D);
    this.setFilter(gl.LINEAR_MIPMAP_LINEAR, gl.LINEAR);
  }

  // Give the memory of the graphics card back.
  destroy() {
    this.gl.getExtension("WEBGL_lose_context")?.loseContext();
  }

  forgetPaint(id) {
    this.gl.deleteTexture(this.paints.get(id) ?? null);
    this.paints.delete(id);
  }

  forgetFrame(frame) {
    const textures = this.frames.get(frame.t);
    if (!textures) return;
    for (const texture of Object.values(textures)) this.gl.deleteTexture(texture);
    this.frames.delete(frame.t);
  }

  texturesOf(frame) {
    if (this.frames.has(frame.t)) return this.frames.get(frame.t);
    const gl = this.gl;
    const { bake } = this;
    const [columns, rows] = [bake.lattice.columns_px.length, bake.lattice.rows_px.length];
    const fromPicture = (format, layout, picture, isReduced = false) => {
      const texture = gl.createTexture();
      gl.bindTexture(gl.TEXTURE_2D, texture);
      gl.texImage2D(gl.TEXTURE_2D, 0, format, layout, gl.UNSIGNED_BYTE, picture);
      if (isReduced) gl.generateMipmap(gl.TEXTURE_2D);
      this.setFilter(isReduced ? gl.NEAREST_MIPMAP_NEAREST : gl.NEAREST, gl.NEAREST);
      return texture;
    };
    const textures = {
      frame: fromPicture(gl.RGBA8, gl.RGBA, frame.picture),
      alphas: fromPicture(gl.R8, gl.RED, frame.alpha, true),
      mapping: this.makeTexture(gl.RG32F, columns, rows * bake.layers.length, gl.RG, gl.FLOAT, frame.uv),
      trust: this.makeTexture(gl.R8, columns, rows, gl.RED, gl.UNSIGNED_BYTE, frame.trust),
    };
    if (bake.light) {
      const [lightColumns, lightRows] = [bake.light.columns_px.length, bake.light.rows_px.length];
      textures.lights = this.makeTexture(gl.RGB8, lightColumns, 2 * lightRows, gl.RGB, gl.UNSIGNED_BYTE, frame.light);
    }
    this.frames.set(frame.t, textures);
    return textures;
  }

  // Draw a frame with layers of paint, and return the canvas, whose picture stays until the next call.
  // layers: from the lowest to the uppermost, see `layersToDraw` in raster.js. hidden: numbers of layers of the video.
  draw(frame, layers, hidden = [], showsTrust = false) {
    const textures = this.texturesOf(frame);
    const background = this.bake.layers.length - 1;
    const shared = {
      ...textures,
      lights: textures.lights ?? this.empty,
      rowNodes: this.rowNodes,
      columnNodes: this.columnNodes,
    };
    this.run("base", this.targets[0], hidden, shared, (set) => {
      const surfaces = [0, 1, 2, 3].flatMap((layer) => surfaceNumbers(this.bake.layers[layer]?.surface));
      set("surfaces", "uniform3fv", surfaces);
    }, Object.fromEntries([0, 1, 2, 3].map((layer) => [`atlas${layer}`, this.atlases[layer] ?? this.empty])));
    const black = { layer: background, adjustment: NO_COLOR, opacity: 1, blend: "normal" };
    for (const each of hidden.includes(background) ? [black, ...layers] : layers) {
      const paint = each.id === undefined ? undefined : this.paints.get(each.id);
      if (!paint && !each.adjustment) continue;
      const box = paint ? this.findBox(frame, each.layer, this.bounds.get(each.id)) : this.wholeBox;
      if (!box) continue;
      this.setBox(box);
      this.run("paint", this.targets[1], hidden, shared, (set) => {
        const surface = each.surface ?? this.bake.layers[each.layer].surface;
        set("surface", "uniform3fv", surfaceNumbers(surface));
        set("surfaceSize", "uniform2fv", [surface?.width ?? 1, surface?.height ?? 1]);
        set("layer", "uniform1i", each.layer);
        set("isAttached", "uniform1i", each.attached ? 1 : 0);
        set("blend", "uniform1i", BLEND_MODES.indexOf(each.blend));
        set("opacity", "uniform1f", each.opacity);
        set("isAdjustment", "uniform1i", each.adjustment ? 1 : 0);
        set("isEverywhere", "uniform1i", each.adjustment && !paint ? 1 : 0);
        if (each.adjustment) set("adjustment", "uniformMatrix3fv", each.adjustment);
      }, { below: this.targets[0].texture, paint: paint ?? this.empty });
      this.copyBack(box);
    }
    this.setBox(null);
    this.run("show", { buffer: null }, hidden, shared, (set) => {
      set("showsTrust", "uniform1i", showsTrust ? 1 : 0);
      set("trustSteps", "uniform1f", this.bake.trust_steps_per_px);
    }, { picture: this.targets[0].texture });
    return this.canvas;
  }

  get wholeBox() {
    return [0, 0, this.bake.clip.width, this.bake.clip.height];
  }

  // Return the box [left, top, right, bottom] of a frame in which paint within some bounds of a surface can show; null
  // if it cannot show at all. Only this part is drawn, which is much faster without a graphics card.
  findBox(frame, layer, bounds) {
    if (!bounds) return this.wholeBox;
    const { surface } = this.bake.layers[layer];
    const { rows_px: rows, columns_px: columns } = this.bake.lattice;
    const [left, right] = [bounds[0], bounds[2]].map((x) => surface.u + x * surface.uv_per_pixel);
    const [top, bottom] = [bounds[1], bounds[3]].map((y) => surface.v + y * surface.uv_per_pixel);
    const box = [Infinity, Infinity, -Infinity, -Infinity];
    const first = layer * rows.length * columns.length;
    for (let r = 0; r + 1 < rows.length; r++) {
      for (let c = 0; c + 1 < columns.length; c++) {
        const at = 2 * (first + r * columns.length + c);
        const below = at + 2 * columns.length;
        const [u0, u1, u2, u3] = [frame.uv[at], frame.uv[at + 2], frame.uv[below], frame.uv[below + 2]];
        if (Math.max(u0, u1, u2, u3) < left || Math.min(u0, u1, u2, u3) > right) continue;
        const [v0, v1, v2, v3] = [frame.uv[at + 1], frame.uv[at + 3], frame.uv[below + 1], frame.uv[below + 3]];
        if (Math.max(v0, v1, v2, v3) < top || Math.min(v0, v1, v2, v3) > bottom) continue;
        box[0] = Math.min(box[0], columns[c]);
        box[1] = Math.min(box[1], rows[r]);
        box[2] = Math.max(box[2], columns[c + 1]);
        box[3] = Math.max(box[3], rows[r + 1]);
      }
    }
    const { width, height } = this.bake.clip;
    if (box[0] > box[2]) return null;
    return [Math.floor(box[0]), Math.floor(box[1]), Math.min(width, Math.ceil(box[2]) + 1), Math.min(height, Math.ceil(box[3]) + 1)];
  }

  setBox(box) {
    const gl = this.gl;
    if (!box) {
      gl.disable(gl.SCISSOR_TEST);
      return;
    }
    gl.enable(gl.SCISSOR_TEST);
    gl.scissor(box[0], box[1], box[2] - box[0], box[3] - box[1]);
  }

  copyBack([left, top, right, bottom]) {
    const gl = this.gl;
    gl.bindFramebuffer(gl.READ_FRAMEBUFFER, this.targets[1].buffer);
    gl.bindFramebuffer(gl.DRAW_FRAMEBUFFER, this.targets[0].buffer);
    gl.blitFramebuffer(left, top, right, bottom, left, top, right, bottom, gl.COLOR_BUFFER_BIT, gl.NEAREST);
  }

  run(name, target, hidden, shared, setOwn, ownTextures) {
    const gl = this.gl;
    const { program, places } = this.programs[name];
    const objects = this.bake.layers.length - 1;
    gl.bindFramebuffer(gl.FRAMEBUFFER, target.buffer);
    gl.viewport(0, 0, this.bake.clip.width, this.bake.clip.height);
    gl.useProgram(program);
    const set = (key, kind, value) => {
      if (!(key in places)) return;
      if (kind === "uniformMatrix3fv") gl.uniformMatrix3fv(places[key], true, value);
      else gl[kind](places[key], value);
    };
    let unit = 0;
    for (const [key, texture] of Object.entries({ ...shared, ...ownTextures })) {
      if (!(key in places)) continue;
      gl.activeTexture(gl.TEXTURE0 + unit);
      gl.bindTexture(gl.TEXTURE_2D, texture);
      gl.uniform1i(places[key], unit++);
    }
    gl.activeTexture(gl.TEXTURE0 + 15); // Textures that are loaded later are bound here, and disturb nothing.
    set("size", "uniform2iv", [this.bake.clip.width, this.bake.clip.height]);
    set("objects", "uniform1i", objects);
    set("largestLight", "uniform1f", this.bake.light ? this.bake.largest_light : 0);
    set("hiddenObjects", "uniform4iv", [0, 1, 2, 3].map((object) => (object < objects && hidden.includes(object) ? 1 : 0)));
    setOwn(set);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }
}

function surfaceNumbers(surface) {
  return surface ? [surface.u, surface.v, surface.uv_per_pixel] : [0, 0, 1];
}
