// The compositing of a frame on the graphics card. It does what editing/render_edits.py does, pixel by pixel.
//
// Pictures lie with their first row at the bottom, as textures do; the last program turns the result over.

const COMMON = `#version 300 es
precision highp float;
precision highp int;
precision highp sampler2D;
uniform sampler2D alphas;      // opacity of all objects, one below the other
uniform sampler2D mapping;     // uv at the nodes, one layer below the other
uniform sampler2D lights;      // light at the nodes
uniform sampler2D rowNodes;    // where each row of pixels lies among the rows of nodes, and of the nodes of light
uniform sampler2D columnNodes;
uniform ivec2 size;            // width and height of the frame
uniform int objects;           // number of objects; the background is the layer of this number
uniform float largestLight;    // light that is stored as 1; 0: no light
uniform bvec4 hiddenObjects;
out vec4 result;

vec4 atNodes(sampler2D nodes, vec2 place, int firstRow, int rows) {
  ivec2 low = clamp(ivec2(floor(place)), ivec2(0), ivec2(textureSize(nodes, 0).x, rows) - 2);
  vec2 share = place - vec2(low);
  ivec2 at = low + ivec2(0, firstRow);
  vec4 above = mix(texelFetch(nodes, at, 0), texelFetch(nodes, at + ivec2(1, 0), 0), share.x);
  vec4 below = mix(texelFetch(nodes, at + ivec2(0, 1), 0), texelFetch(nodes, at + ivec2(1, 1), 0), share.x);
  return mix(above, below, share.y);
}

vec2 uvOf(int layer, ivec2 pixel) {
  vec2 place = vec2(texelFetch(columnNodes, ivec2(pixel.x, 0), 0).r, texelFetch(rowNodes, ivec2(pixel.y, 0), 0).r);
  int rows = textureSize(mapping, 0).y / (objects + 1);
  return atNodes(mapping, place, layer * rows, rows).rg;
}

float learnedAlpha(int object, ivec2 pixel) {
  return texelFetch(alphas, pixel + ivec2(0, object * size.y), 0).r;
}

// The light on a pixel; isBehind: on what the objects hide (rendering/hidden_light.py).
vec3 lightOf(ivec2 pixel, bool isBehind) {
  if (largestLight == 0.0) return vec3(1.0);
  vec2 place = vec2(texelFetch(columnNodes, ivec2(pixel.x, 0), 0).g, texelFetch(rowNodes, ivec2(pixel.y, 0), 0).g);
  int rows = textureSize(lights, 0).y / 2;
  return largestLight * atNodes(lights, place, isBehind ? rows : 0, rows).rgb;
}

// Whether a pixel shows what is behind a hidden object.
bool isUncovered(ivec2 pixel) {
  for (int object = 0; object < objects; object++) {
    if (hiddenObjects[object] && learnedAlpha(object, pixel) > 0.5) return true;
  }
  return false;
}

// Opacity of an object for paint: up to 0.08 it counts as none, from 0.85 on as full (editing/layer_edit.py).
float paintAlpha(int object, ivec2 pixel) {
  return hiddenObjects[object] ? 0.0 : clamp((learnedAlpha(object, pixel) - 0.08) / 0.77, 0.0, 1.0);
}

// How much of a layer the objects in front of it let through.
float letThrough(int layer, ivec2 pixel) {
  float transmittance = 1.0;
  for (int object = 0; object < layer; object++) transmittance *= 1.0 - paintAlpha(object, pixel);
  return transmittance;
}
`;

export const VERTEX = `#version 300 es
void main() {
  gl_Position = vec4(vec2(gl_VertexID % 2, gl_VertexID / 2) * 4.0 - 1.0, 0.0, 1.0);
}`;

// The picture of the frame; where objects are hidden, what is behind them.
export const BASE = `${COMMON}
uniform sampler2D frame;
uniform sampler2D atlas0;
uniform sampler2D atlas1;
uniform sampler2D atlas2;
uniform sampler2D atlas3;
uniform vec3 surfaces[4]; // u, v and uv per pixel of each surface
const int RADIUS = 3;

vec3 atlasColor(int layer, ivec2 pixel) {
  vec3 surface = surfaces[layer];
  vec2 place = (uvOf(layer, pixel) - surface.xy) / surface.z + 0.5;
  if (layer == 0) return textureLod(atlas0, place / vec2(textureSize(atlas0, 0)), 0.0).rgb;
  if (layer == 1) return textureLod(atlas1, place / vec2(textureSize(atlas1, 0)), 0.0).rgb;
  if (layer == 2) return textureLod(atlas2, place / vec2(textureSize(atlas2, 0)), 0.0).rgb;
  return textureLod(atlas3, place / vec2(textureSize(atlas3, 0)), 0.0).rgb;
}

// Whether an object is anywhere near: read from the opacity reduced to a quarter, which is much faster.
bool isNearObject(ivec2 pixel) {
  for (int object = 0; object < objects; object++) {
    for (int i = 0; i < 9; i++) {
      ivec2 reduced = ivec2(pixel.x, pixel.y + object * size.y) / 4 + ivec2(i % 3 - 1, i / 3 - 1);
      if (texelFetch(alphas, clamp(reduced, ivec2(0), textureSize(alphas, 2) - 1), 2).r > 0.0) return true;
    }
  }
  return false;
}

float hiddenCoverage(ivec2 pixel) {
  if (!isNearObject(pixel)) return 0.0;
  float covered = 0.0;
  for (int dy = -RADIUS - 1; dy <= RADIUS + 1; dy++) {
    for (int dx = -RADIUS - 1; dx <= RADIUS + 1; dx++) {
      ivec2 at = clamp(pixel + ivec2(dx, dy), ivec2(0), size - 1);
      float near = clamp(float(RADIUS) + 1.0 - length(vec2(dx, dy)), 0.0, 1.0);
      for (int object = 0; object < objects; object++) {
        if (hiddenObjects[object] && learnedAlpha(object, at) > 0.02)
          covered = max(covered, near * letThrough(object, at));
      }
    }
  }
  return covered;
}

void main() {
  ivec2 pixel = ivec2(gl_FragCoord.xy);
  vec3 picture = texelFetch(frame, pixel, 0).rgb;
  if (any(hiddenObjects)) {
    float covered = hiddenCoverage(pixel);
    vec3 behind = vec3(0.0);
    float transmittance = 1.0;
    for (int layer = 0; layer <= objects; layer++) {
      float alpha = layer == objects ? 1.0 : hiddenObjects[layer] ? 0.0 : learnedAlpha(layer, pixel);
      if (transmittance * alpha > 0.0) behind += transmittance * alpha * atlasColor(layer, pixel);
      transmittance *= 1.0 - alpha;
    }
    picture = mix(picture, clamp(behind * lightOf(pixel, true), 0.0, 1.0), covered);
  }
  result = vec4(picture, 1.0);
}`;

// Paint on a layer over what is below it (rendering/blending.py), or a change of the layer's colours.
export const PAINT = `${COMMON}
uniform sampler2D below;
uniform sampler2D paint;
uniform vec3 surface; // u, v and uv per pixel
uniform vec2 surfaceSize; // in pixels; the paint may have more or fewer
uniform int layer;
uniform bool isAttached;
uniform int blend;    // 0 normal, 1 multiply, 2 screen, 3 overlay, 4 color
uniform float opacity;
uniform bool isAdjustment;
uniform bool isEverywhere; // an adjustment without a mask
uniform mat3 adjustment;
const vec3 LUMA = vec3(0.299, 0.587, 0.114);

vec3 blended(vec3 picture, vec3 color, float alpha) {
  if (blend == 1) return picture * color;
  if (blend == 2) return alpha * picture + color - picture * color;
  if (blend == 3) return mix(alpha - 2.0 * (1.0 - picture) * (alpha - color), 2.0 * picture * color, vec3(lessThan(picture, vec3(0.5))));
  if (blend == 4) return clamp(color + alpha * dot(picture, LUMA) - dot(color, LUMA), 0.0, alpha);
  return color;
}

void main() {
  ivec2 pixel = ivec2(gl_FragCoord.xy);
  vec3 picture = texelFetch(below, pixel, 0).rgb;
  vec2 paintSize = vec2(textureSize(paint, 0));
  vec2 place = ((uvOf(layer, pixel) - surface.xy) / surface.z + 0.5) * paintSize / surfaceSize - 0.5;
  float texels = min(length(dFdx(place)), length(dFdy(place)));
  vec4 edit = textureLod(paint, (place + 0.5) / paintSize, log2(max(texels / 2.0, 1.0)));
  // Up to half a pixel beyond the border the paint fades, farther away there is none.
  vec2 inside = clamp(min(place + 1.0, paintSize - place), 0.0, 1.0);
  edit *= inside.x * inside.y;
  if (isEverywhere) edit = vec4(1.0);
  edit *= opacity;
  float shown = letThrough(layer, pixel);
  if (!isAttached && layer < objects) shown *= paintAlpha(layer, pixel);
  if (isAdjustment) {
    result = vec4(mix(picture, clamp(adjustment * picture, 0.0, 1.0), edit.a * shown), 1.0);
    return;
  }
  vec3 color = edit.rgb;
  if (blend == 0) color *= lightOf(pixel, isUncovered(pixel));
  if (blend == 2) color = min(color * lightOf(pixel, isUncovered(pixel)), edit.a);
  result = vec4(clamp(picture * (1.0 - shown * edit.a) + shown * blended(picture, color, edit.a), 0.0, 1.0), 1.0);
}`;

// The finished picture, the right way up, with the trust map over it if that is wanted.
export const SHOW = `${COMMON}
uniform sampler2D picture;
uniform sampler2D trust;
uniform bool showsTrust;
uniform float trustSteps; // per pixel

void main() {
  ivec2 pixel = ivec2(gl_FragCoord.x, float(size.y) - gl_FragCoord.y);
  vec3 color = texelFetch(picture, pixel, 0).rgb;
  if (showsTrust) {
    vec2 place = vec2(texelFetch(columnNodes, ivec2(pixel.x, 0), 0).r, texelFetch(rowNodes, ivec2(pixel.y, 0), 0).r);
    float contradiction = atNodes(trust, place, 0, textureSize(trust, 0).y).r * 255.0 / trustSteps;
    vec3 heat = mix(vec3(1.0, 0.85, 0.2), vec3(1.0, 0.1, 0.25), smoothstep(1.5, 4.0, contradiction));
    float grey = dot(color, vec3(0.299, 0.587, 0.114));
    color = mix(vec3(grey * 0.7), heat, smoothstep(0.5, 1.5, contradiction) * 0.75);
  }
  result = vec4(color, 1.0);
}`;
