// Pictures whose four corners lie anywhere: upper left, upper right, lower right, lower left.

// Return the matrix (9 numbers) from the unit square to a quadrilateral (Heckbert 1989).
export function squareToQuad([[x0, y0], [x1, y1], [x2, y2], [x3, y3]]) {
  const [dx1, dx2, sx] = [x1 - x2, x3 - x2, x0 - x1 + x2 - x3];
  const [dy1, dy2, sy] = [y1 - y2, y3 - y2, y0 - y1 + y2 - y3];
  const determinant = dx1 * dy2 - dx2 * dy1;
  const g = (sx * dy2 - dx2 * sy) / determinant;
  const h = (dx1 * sy - sx * dy1) / determinant;
  return [x1 - x0 + g * x1, x3 - x0 + h * x3, x0, y1 - y0 + g * y1, y3 - y0 + h * y3, y0, g, h, 1];
}

export const MESH_STEPS = 12; // cells along each side of a mesh

// Return the points (MESH_STEPS + 1)^2 of a picture, row by row, whose corners are those of a quadrilateral.
export function makeMesh(corners) {
  const matrix = squareToQuad(corners);
  const steps = [...Array(MESH_STEPS + 1).keys()].map((each) => each / MESH_STEPS);
  return steps.flatMap((t) => steps.map((s) => applyMatrix(matrix, [s, t])));
}

export function applyMatrix(m, [x, y]) {
  const w = m[6] * x + m[7] * y + m[8];
  return [(m[0] * x + m[1] * y + m[2]) / w, (m[3] * x + m[4] * y + m[5]) / w];
}

export function invertMatrix([a, b, c, d, e, f, g, h, i]) {
  const cofactors = [
    e * i - f * h, c * h - b * i, b * f - c * e,
    f * g - d * i, a * i - c * g, c * d - a * f,
    d * h - e * g, b * g - a * h, a * e - b * d,
  ];
  const determinant = a * cofactors[0] + b * cofactors[3] + c * cofactors[6];
  return cofactors.map((each) => each / determinant);
}

export function isParallelogram([a, b, c, d]) {
  const size = Math.hypot(c[0] - a[0], c[1] - a[1]) + Math.hypot(d[0] - b[0], d[1] - b[1]);
  return Math.hypot(a[0] - b[0] + c[0] - d[0], a[1] - b[1] + c[1] - d[1]) < 1e-4 * size;
}

// A quadrilateral that folds over itself, or has no area, shows nothing.
export function isConvex(corners) {
  const turns = corners.map((each, i) => {
    const [next, after] = [corners[(i + 1) % 4], corners[(i + 2) % 4]];
    return (next[0] - each[0]) * (after[1] - next[1]) - (next[1] - each[1]) * (after[0] - next[0]);
  });
  return turns.every((turn) => turn > 1e-6) || turns.every((turn) => turn < -1e-6);
}

export function centerOf(corners) {
  return [0, 1].map((axis) => corners.reduce((sum, corner) => sum + corner[axis], 0) / corners.length);
}

// Draw a picture (a canvas or a bitmap of width x height) into a quadrilateral of a 2D context.
export function drawInQuad(context, picture, width, height, corners) {
  if (!isConvex(corners)) return;
  if (isParallelogram(corners)) {
    const [origin, right, , below] = corners;
    context.save();
    context.transform(
      (right[0] - origin[0]) / width, (right[1] - origin[1]) / width,
      (below[0] - origin[0]) / height, (below[1] - origin[1]) / height,
      origin[0], origin[1],
    );
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, 0, 0, width, height);
    context.restore();
    return;
  }
  const [left, top, warped] = warpPicture(picture, width, height, corners, context.canvas);
  if (warped) context.drawImage(warped, left, top);
}

// Draw a picture (of width x height) into a mesh of a 2D context, see `makeMesh`.
export function drawInMesh(context, picture, width, height, mesh) {
  const [left, top, warped] = warp(picture, width, height, mesh, context.canvas, (target, source, origin) => {
    const count = MESH_STEPS + 1;
    // The outermost cells go a little beyond the picture, where it fades out, so that its border is smooth.
    const beyond = Math.min(1, (1.5 * MESH_STEPS) / Math.min(source.width, source.height));
    const nodeAt = (column, row) => {
      const inside = (each) => Math.max(0, Math.min(MESH_STEPS, each));
      const [c, r] = [inside(column), inside(row)];
      const [stepC, stepR] = [(column - c) * beyond, (row - r) * beyond];
      const at = mesh[r * count + c];
      const acrossFrom = mesh[r * count + (c ? c - 1 : c + 1)];
      const downFrom = mesh[(r ? r - 1 : r + 1) * count + c];
      const place = [0, 1].map((axis) => at[axis] + Math.abs(stepC) * (at[axis] - acrossFrom[axis]) + Math.abs(stepR) * (at[axis] - downFrom[axis]) - origin[axis]);
      return [...place, (c + stepC) / MESH_STEPS, (r + stepR) / MESH_STEPS];
    };
    for (let row = -1; row <= MESH_STEPS; row++) {
      for (let column = -1; column <= MESH_STEPS; column++) {
        const [a, b, c, d] = [nodeAt(column, row), nodeAt(column + 1, row), nodeAt(column + 1, row + 1), nodeAt(column, row + 1)];
        fillTriangle(target, source, a, b, c);
        fillTriangle(target, source, a, c, d);
      }
    }
  });
  if (warped) context.drawImage(warped, left, top);
}

// Sample a picture in a triangle of nodes [x, y, s, t]; s and t go from 0 to 1 over the picture.
function fillTriangle(target, source, a, b, c) {
  const determinant = (b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1]);
  if (Math.abs(determinant) < 1e-9) return;
  const [xs, ys] = [[a[0], b[0], c[0]], [a[1], b[1], c[1]]];
  const [firstX, lastX] = [Math.max(0, Math.ceil(Math.min(...xs) - 0.5)), Math.min(target.width - 1, Math.floor(Math.max(...xs) - 0.5))];
  const [firstY, lastY] = [Math.max(0, Math.ceil(Math.min(...ys) - 0.5)), Math.min(target.height - 1, Math.floor(Math.max(...ys) - 0.5))];
  for (let y = firstY; y <= lastY; y++) {
    for (let x = firstX; x <= lastX; x++) {
      const [dx, dy] = [x + 0.5 - a[0], y + 0.5 - a[1]];
      const share = (dx * (c[1] - a[1]) - dy * (c[0] - a[0])) / determinant;
      const other = (dy * (b[0] - a[0]) - dx * (b[1] - a[1])) / determinant;
      if (share < -1e-6 || other < -1e-6 || share + other > 1 + 1e-6) continue;
      const [s, t] = [2, 3].map((each) => a[each] + share * (b[each] - a[each]) + other * (c[each] - a[each]));
      sampleInto(target.data, 4 * (y * target.width + x), source, s * source.width - 0.5, t * source.height - 0.5);
    }
  }
}

// Return the place and the canvas of a picture in perspective.
function warpPicture(picture, width, height, corners, limits) {
  const inverse = invertMatrix(squareToQuad(corners));
  return warp(picture, width, height, corners, limits, (target, source, [left, top]) => {
    for (let y = 0; y < target.height; y++) {
      for (let x = 0; x < target.width; x++) {
        const [s, t] = applyMatrix(inverse, [left + x + 0.5, top + y + 0.5]);
        if (s > -0.02 && s < 1.02 && t > -0.02 && t < 1.02)
          sampleInto(target.data, 4 * (y * target.width + x), source, s * source.width - 0.5, t * source.height - 0.5);
      }
    }
  });
}

// Return the place and the canvas of a picture that lies within some points; it is sampled pixel by pixel by `fill`.
function warp(picture, width, height, points, limits, fill) {
  const [xs, ys] = [points.map((point) => point[0]), points.map((point) => point[1])];
  const [left, top] = [Math.max(0, Math.floor(Math.min(...xs)) - 1), Math.max(0, Math.floor(Math.min(...ys)) - 1)];
  const right = Math.min(limits.width, Math.ceil(Math.max(...xs)) + 2);
  const bottom = Math.min(limits.height, Math.ceil(Math.max(...ys)) + 2);
  if (right <= left || bottom <= top) return [0, 0, null];
  // A picture much larger than its place is made smaller first, or it would flicker.
  const factor = Math.min(1, (1.5 * (Math.max(...xs) - Math.min(...xs))) / width, (1.5 * (Math.max(...ys) - Math.min(...ys))) / height);
  const small = document.createElement("canvas");
  small.width = Math.max(2, Math.round(width * factor));
  small.height = Math.max(2, Math.round(height * factor));
  const smallContext = small.getContext("2d", { willReadFrequently: true });
  smallContext.imageSmoothingQuality = "high";
  smallContext.drawImage(picture, 0, 0, small.width, small.height);
  const source = smallContext.getImageData(0, 0, small.width, small.height);
  const canvas = document.createElement("canvas");
  canvas.width = right - left;
  canvas.height = bottom - top;
  const context = canvas.getContext("2d");
  const target = context.createImageData(canvas.width, canvas.height);
  fill(target, source, [left, top]);
  context.putImageData(target, 0, 0);
  return [left, top, canvas];
}

function sampleInto(target, at, source, x, y) {
  const [x0, y0] = [Math.floor(x), Math.floor(y)];
  const sums = [0, 0, 0, 0];
  for (let dy = 0; dy < 2; dy++) {
    for (let dx = 0; dx < 2; dx++) {
      const [px, py] = [x0 + dx, y0 + dy];
      if (px < 0 || py < 0 || px >= source.width || py >= source.height) continue;
      const from = 4 * (py * source.width + px);
      const weight = (dx ? x - x0 : 1 - x + x0) * (dy ? y - y0 : 1 - y + y0) * source.data[from + 3];
      for (let i = 0; i < 3; i++) sums[i] += weight * source.data[from + i];
      sums[3] += weight;
    }
  }
  if (sums[3] <= 0) return;
  for (let i = 0; i < 3; i++) target[at + i] = sums[i] / sums[3];
  target[at + 3] = sums[3];
}
