// The pane to paint on: a frame or an atlas, moved and zoomed, with handles, pins and the brush drawn over it.

const LEAST_ZOOM = 0.1;
const LARGEST_ZOOM = 16;
const MARGIN_PX = 12; // around a picture that is fitted to the pane

export class View {
  constructor(stage, canvas, overlay) {
    this.stage = stage;
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.zoom = 1;
    this.offset = [0, 0];
    this.isFitted = true;
    this.onZoom = () => {};
    this.konva = new window.Konva.Stage({ container: overlay, width: 10, height: 10, listening: false });
    this.marks = new window.Konva.Layer({ listening: false });
    this.konva.add(this.marks);
    new ResizeObserver(() => this.resize()).observe(stage);
  }

  // Set the size of the picture, in its own pixels.
  setSize(width, height) {
    if (this.canvas.width === width && this.canvas.height === height) return;
    this.canvas.width = width;
    this.canvas.height = height;
    this.fit();
  }

  resize() {
    const { clientWidth, clientHeight } = this.stage;
    const ratio = window.devicePixelRatio || 1;
    this.marks.getCanvas().setPixelRatio(ratio);
    this.konva.size({ width: clientWidth, height: clientHeight });
    if (this.isFitted) this.fit();
    else this.place();
  }

  fit() {
    const { clientWidth, clientHeight } = this.stage;
    const space = [clientWidth - 2 * MARGIN_PX, clientHeight - 2 * MARGIN_PX];
    this.zoom = Math.max(LEAST_ZOOM, Math.min(space[0] / this.canvas.width, space[1] / this.canvas.height));
    this.offset = [
      (clientWidth - this.canvas.width * this.zoom) / 2,
      (clientHeight - this.canvas.height * this.zoom) / 2,
    ];
    this.isFitted = true;
    this.place();
  }

  place() {
    this.canvas.style.transform = `translate(${this.offset[0]}px, ${this.offset[1]}px) scale(${this.zoom})`;
    this.canvas.style.imageRendering = this.zoom > 3 ? "pixelated" : "auto";
    this.onZoom(this.zoom);
  }

  zoomAt(screen, factor) {
    const before = this.toPicture(screen);
    this.zoom = Math.max(LEAST_ZOOM, Math.min(LARGEST_ZOOM, this.zoom * factor));
    const after = this.toScreen(before);
    this.pan([screen[0] - after[0], screen[1] - after[1]]);
  }

  pan([dx, dy]) {
    this.offset = [this.offset[0] + dx, this.offset[1] + dy];
    this.isFitted = false;
    this.place();
  }

  // The center of the upper left pixel of the picture is (0, 0), as everywhere in the project.
  toPicture([x, y]) {
    return [(x - this.offset[0]) / this.zoom - 0.5, (y - this.offset[1]) / this.zoom - 0.5];
  }

  toScreen([x, y]) {
    return [(x + 0.5) * this.zoom + this.offset[0], (y + 0.5) * this.zoom + this.offset[1]];
  }

  screenOf(event) {
    const box = this.stage.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  get middle() {
    return [this.stage.clientWidth / 2, this.stage.clientHeight / 2];
  }

  // Draw marks over the picture; shapes: a list of Konva shapes in pixels of the screen.
  drawMarks(shapes) {
    this.marks.destroyChildren();
    for (const shape of shapes) this.marks.add(shape);
    this.marks.batchDraw();
  }
}
