// The windows of the page: text, pictures, export, keys.

const KEYS = [
  ["V B E L T P I H", "select, brush, eraser, line, text, picture, eyedropper, hand"],
  ["N", "pin"],
  ["M", "mask stroke (with Alt: background)"],
  ["[ ]", "smaller or larger brush"],
  ["{ }", "softer or harder brush"],
  ["1 … 9, 0", "opacity 10 to 90, 100 %"],
  ["← →", "one frame back or on"],
  ["Home End", "first or last frame"],
  ["Space", "play or stop"],
  ["Ctrl+Z", "undo"],
  ["Ctrl+Shift+Z", "redo"],
  ["Ctrl+D", "duplicate what is selected"],
  ["Delete", "delete what is selected, or the layer whose row has the keyboard"],
  ["F2", "rename the layer whose row has the keyboard"],
  ["Arrows + Shift", "move what is selected"],
  ["wheel, + −", "zoom"],
  ["middle button", "move the view (or hold Ctrl + Space)"],
  ["F", "fit to the pane"],
  ["A", "frame or atlas"],
  ["O W K", "onion view, before / after, trust map"],
  ["\\", "one pane or two"],
  ["Ctrl+S", "save now (it is saved by itself, too)"],
  ["Ctrl+E", "export"],
];

export class Dialogs {
  constructor(dialog, fileInput) {
    this.dialog = dialog;
    this.fileInput = fileInput;
  }

  // Show a form, and return what was chosen when it is closed; null if it is left.
  async show(html, read) {
    const { dialog } = this;
    if (dialog.open) return null;
    dialog.innerHTML = `<form method="dialog">${html}</form>`;
    dialog.returnValue = "";
    dialog.showModal();
    dialog.querySelector("textarea, input, select, button.primary")?.focus();
    await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
    return dialog.returnValue === "ok" ? read(dialog) : null;
  }

  askText() {
    const html = `<h3>Text</h3><textarea aria-label="Text"></textarea>
      <div class="buttons"><button value="">Cancel</button><button value="ok" class="primary">Place</button></div>`;
    return this.show(html, (dialog) => dialog.querySelector("textarea").value.trim());
  }

  askPicture() {
    this.fileInput.value = "";
    return new Promise((done) => {
      this.fileInput.onchange = () => done(this.fileInput.files[0] ?? null);
      this.fileInput.oncancel = () => done(null);
      this.fileInput.click();
    });
  }

  askExport(bake) {
    const [width, height] = bake.native_size;
    const html = `<h3>Export</h3>
      <div class="choices">
        <label><input type="radio" name="format" value="mp4" checked> MP4 (H.264), with sound</label>
        <label><input type="radio" name="format" value="prores"> ProRes 4444 (.mov)</label>
        <label><input type="radio" name="format" value="ffv1"> FFV1 (.mkv), lossless</label>
        <label><input type="radio" name="format" value="png"> PNG, a picture for each frame</label>
        <label><input type="radio" name="format" value="exr"> EXR, linear light</label>
      </div>
      <label><input type="checkbox" name="native" checked> at the video's own size, ${width} x ${height}</label><br>
      <label><input type="checkbox" name="edit_only"> the edit alone, transparent elsewhere (not for MP4)</label>
      <p class="quiet">It is drawn by only_edit.py, into a new folder beside the project.</p>
      <div class="buttons"><button value="">Cancel</button><button value="ok" class="primary">Export</button></div>`;
    return this.show(html, (dialog) => ({
      format: dialog.querySelector("[name=format]:checked").value,
      native: dialog.querySelector("[name=native]").checked,
      edit_only: dialog.querySelector("[name=edit_only]").checked,
    }));
  }

  // Choose a file that another program paints; returns {name}, or {make: layer}.
  askFile(files, layers) {
    const options = files.map((name) => `<option>${escapeHtml(name)}</option>`).join("");
    const make = layers
      .map((layer, i) => (layer.surface ? `<label><input type="radio" name="file" value="make${i}"> a new file over the atlas of the ${layer.name}</label>` : ""))
      .join("");
    const html = `<h3>Paint in another program</h3>
      <p>A layer can be a file that Krita, GIMP (.ora) or Photoshop (.psd) saves, or a PNG. The page shows each save within a second.</p>
      <div class="choices">${make}
        <label><input type="radio" name="file" value="known" ${files.length ? "" : "disabled"}> a file of the project's folder: <select>${options}</select></label>
      </div>
      <label>It lies over the atlas of the <select name="layer">${layers.map((layer, i) => (layer.surface ? `<option value="${i}">${layer.name}</option>` : "")).join("")}</select> (for a file of the folder)</label>
      <div class="buttons"><button value="">Cancel</button><button value="ok" class="primary">Add</button></div>`;
    return this.show(html, (dialog) => {
      const chosen = dialog.querySelector("[name=file]:checked")?.value;
      if (!chosen) return null;
      if (chosen.startsWith("make")) return { make: Number(chosen.slice(4)) };
      return { name: dialog.querySelector(".choices select").value, layer: Number(dialog.querySelector("[name=layer]").value) };
    });
  }

  showKeys() {
    const rows = KEYS.map(([keys, meaning]) => `<tr><td><kbd>${keys}</kbd></td><td>${meaning}</td></tr>`).join("");
    const html = `<h3>Keys</h3><table>${rows}</table>
      <p class="quiet">A stroke lies on the layer of the video under the brush, and follows it through all frames.</p>
      <div class="buttons"><button value="ok" class="primary">Close</button></div>`;
    return this.show(html, () => true);
  }

  // folder: where the export lies. file: its path in the project's folder, if it is one file.
  showExported(folder, file) {
    const link = file ? `<p><a href="api/exported?name=${encodeURIComponent(file)}" download>Download ${escapeHtml(file.split("/").at(-1))}</a></p>` : "";
    const html = `<h3>Exported</h3><p>The edited video is in<br><code>${escapeHtml(folder)}</code></p>${link}
      <div class="buttons"><button value="ok" class="primary">Close</button></div>`;
    return this.show(html, () => true);
  }
}

export function escapeHtml(text) {
  const entities = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
  return String(text).replace(/[&<>"]/g, (each) => entities[each]);
}
