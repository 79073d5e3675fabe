// Between the page and the server: the project is saved a moment after each change, and events arrive.

const SAVE_AFTER_MS = 800; // after the last change
const RETRY_MS = 2000; // while the server does not answer

async function ask(address, options = {}) {
  const answer = await fetch(address, options);
  if (answer.ok) return answer.json();
  let message = `the program answers with error ${answer.status}`;
  try {
    message = (await answer.json()).error ?? message;
  } catch {
    // An answer without JSON has no better message.
  }
  throw Object.assign(new Error(message), { status: answer.status });
}

function askWithBody(method, address, values) {
  return ask(address, { method, body: JSON.stringify(values), headers: { "Content-Type": "application/json" } });
}

export class Server {
  constructor() {
    this.isSaving = false;
    this.isDirty = false;
    this.savedPictures = new Map(); // the objects of each layer as they were drawn into its saved picture
    this.onState = () => {}; // "saved", "saving", "unsaved", "conflict" or "lost"
    this.onEvent = () => {};
    this.onReturn = () => {};
  }

  readState() {
    return ask("api/state");
  }

  follow() {
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const path = location.pathname.replace(/[^/]*$/, "");
    const socket = new WebSocket(`${scheme}//${location.host}${path}api/events`);
    socket.onopen = () => {
      if (this.wasLost) this.onReturn();
      this.wasLost = false;
    };
    socket.onmessage = (message) => this.onEvent(JSON.parse(message.data));
    socket.onclose = () => {
      this.wasLost = true;
      this.onState("lost");
      setTimeout(() => this.follow(), RETRY_MS);
    };
  }

  // Save soon. getProject: returns the project and draws its layers, see `projectToSave` in session.js.
  saveSoon(getProject) {
    this.isDirty = true;
    this.getProject = getProject;
    if (!this.isBlocked && !this.hasFailed) this.onState("unsaved");
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.save(), SAVE_AFTER_MS);
  }

  // Save now, and wait until everything is saved. Throws an error if that fails.
  async flush() {
    clearTimeout(this.timer);
    while (this.isSaving) await new Promise((done) => setTimeout(done, 50));
    if (this.isDirty) await this.save();
    if (this.isDirty) throw new Error("the project could not be saved");
  }

  async save() {
    if (this.isSaving || this.isBlocked || !this.isDirty) return;
    this.isSaving = true;
    this.isDirty = false;
    this.onState("saving");
    try {
      const project = await this.getProject((layer, canvas) => this.savePicture(layer, canvas));
      this.revision = (await askWithBody("PUT", "api/project", { project, revision: this.revision })).revision;
      this.hasFailed = false;
      this.isSaving = false;
      this.onState(this.isDirty ? "unsaved" : "saved");
      if (this.isDirty) this.saveSoon(this.getProject);
    } catch (error) {
      this.isDirty = true;
      this.isSaving = false;
      this.hasFailed = true;
      if (error.status === 409) {
        this.isBlocked = true;
        this.onState("conflict");
      } else {
        this.onState(error instanceof TypeError && !error.status ? "lost" : "failed", error.message);
        this.timer = setTimeout(() => this.save(), RETRY_MS);
      }
    }
  }

  get hasUnsaved() {
    return Boolean(this.isDirty || this.isSaving || this.isBlocked);
  }

  async savePicture(layer, canvas) {
    const known = this.savedPictures.get(layer.id);
    if (known?.objects === layer.objects && known.target === layer.layer) return known.picture;
    const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
    const { picture } = await ask("api/pictures?layer=true", { method: "POST", body: blob });
    this.savedPictures.set(layer.id, { objects: layer.objects, target: layer.layer, picture });
    return picture;
  }

  forgetPictures() {
    this.savedPictures.clear();
  }

  // Go on after another tab has changed the project: with its state, or by saving this one over it.
  async resolveConflict(keepsMine) {
    const state = await this.readState();
    this.revision = state.revision;
    this.isBlocked = false;
    this.forgetPictures(); // Those that the other tab did not name are gone.
    if (keepsMine) await this.save();
    else this.isDirty = false;
    return state;
  }

  addPicture(blob, name) {
    return ask(`api/pictures?name=${encodeURIComponent(name)}`, { method: "POST", body: blob });
  }

  listFiles() {
    return ask("api/files");
  }

  makeFile(layer) {
    return ask(`api/files/${layer}`, { method: "POST" });
  }

  async loadParts(name) {
    const parts = await ask(`api/parts?name=${encodeURIComponent(name)}`);
    const load = async (part, number) => {
      const answer = await fetch(`api/part?name=${encodeURIComponent(name)}&number=${number}`);
      if (!answer.ok) throw new Error((await answer.json()).error);
      const bitmap = await createImageBitmap(await answer.blob(), { premultiplyAlpha: "premultiply" });
      return { blend: part.blend, bitmap };
    };
    return Promise.all(parts.map(load));
  }

  async loadPicture(source) {
    const answer = await fetch(`api/picture?name=${encodeURIComponent(source)}`);
    if (!answer.ok) throw new Error((await answer.json()).error);
    return answer.blob();
  }

  startJob(kind, values) {
    return askWithBody("POST", `api/jobs/${kind}`, values);
  }

  chooseRun(name) {
    return askWithBody("POST", "api/run", { name });
  }

  cancelJob() {
    return ask("api/cancel", { method: "POST" });
  }
}
