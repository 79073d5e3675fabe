// Files that the page takes and gives.

import { projectToSave } from "editor/session.js";

const LARGEST_PX = 4096; // Longest side of a picture that is placed; larger ones are made smaller.
const VECTOR_PX = 2048; // Width at which drawings without a size of their own are taken.

// Return a picture of any kind that the browser knows as PNG and as bitmap. Throws an error if it is none.
export async function toPng(file) {
  const image = new Image();
  image.src = URL.createObjectURL(file);
  try {
    await image.decode();
  } catch {
    throw new Error("is no picture that can be read; give a PNG, JPEG, WebP or SVG");
  } finally {
    URL.revokeObjectURL(image.src);
  }
  let [width, height] = [image.naturalWidth, image.naturalHeight];
  if (file.type === "image/svg+xml" || !width) {
    const aspect = width && height ? height / width : 1;
    [width, height] = [VECTOR_PX, Math.round(VECTOR_PX * aspect)];
  }
  const factor = Math.min(1, LARGEST_PX / Math.max(width, height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * factor));
  canvas.height = Math.max(1, Math.round(height * factor));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  return { blob, bitmap: await createImageBitmap(canvas) };
}

// Give the project as one file, with the pictures of its layers in it; only_edit.py --project renders it.
export async function downloadProject(app) {
  const project = await projectToSave(app, (layer, canvas) => canvas.toDataURL("image/png"));
  // Only what layers look like is inside, which is all that only_edit.py needs, and the pictures of objects; layers that are files lie elsewhere.
  const inline = (object) => (object.source ? { ...object, source: app.inlinePictures[object.source] ?? object.source } : object);
  project.layers = project.layers.filter((layer) => layer.kind !== "file").map((layer) => ({ ...layer, objects: layer.objects.map(inline) }));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(project)], { type: "application/json" }));
  link.download = `${app.bake.clip.name}_project.json`;
  link.click();
  app.downloaded = app.store.project;
  app.say(`${link.download} was downloaded; only_edit.py --project renders it`);
}
