// The page and the program: saving, connections that are lost, and long work.

import { moveToBake } from "editor/project.js";

const JOB_NAMES = { export: "Exporting", refit: "Refitting" };

// Return the project with the pictures of its layers, as it is saved. savePicture: takes a layer and its canvas, and
// returns the name of the picture. A layer of which a picture is missing is kept as it was saved.
export async function projectToSave(app, savePicture) {
  while (app.extra) await new Promise((done) => setTimeout(done, 100)); // A stroke is being drawn.
  const { project } = app.store;
  const layers = [];
  for (const layer of project.layers) {
    if (layer.kind === "file") {
      layers.push(layer);
      continue;
    }
    try {
      await app.pictures.wait(layer.objects.map((object) => object.source).filter(Boolean));
    } catch (error) {
      app.say(`“${layer.name}” keeps the picture with which it was saved before: ${error.message}`, true);
      layers.push(layer);
      continue;
    }
    app.drawLayer(layer);
    const canvas = layer.objects.length ? app.raster.canvas(layer.id) : null;
    layers.push({ ...layer, picture: canvas ? await savePicture(layer, canvas) : null });
  }
  return { ...project, layers };
}

export function listenToServer(app) {
  const { server } = app;
  server.onState = (state, message) => showSaved(app, state, message);
  server.onEvent = (event) => takeEvent(app, event);
  server.onReturn = () => reconnect(app);
  server.follow();
  showSaved(app, "saved");
  if (app.firstJob) takeEvent(app, { event: "job", ...app.firstJob });
}

export function showSaved(app, state, message = "") {
  const now = new Date().toLocaleTimeString();
  const texts = { saved: `saved at ${now}`, saving: "saving…", unsaved: "not saved yet", failed: "not saved", lost: "not connected", conflict: "not saved" };
  app.find("saved").textContent = texts[state];
  app.find("saved").title = app.projectFile;
  const banner = app.find("banner");
  if (state === "conflict") {
    banner.innerHTML = "Another tab has changed this project. <button>Take its state</button> <button>Keep this one</button>";
    const [take, keep] = banner.querySelectorAll("button");
    take.onclick = () => resolveConflict(app, false);
    keep.onclick = () => resolveConflict(app, true);
    banner.hidden = false;
  } else if (state === "lost") {
    banner.textContent = `The program has ended, or does not answer. What was saved is in ${app.projectFile}; start it again with the same command, and this page goes on and saves the rest.`;
    banner.hidden = false;
  } else if (state === "failed") {
    banner.textContent = `The project could not be saved: ${message}`;
    banner.hidden = false;
  } else if (state !== "saving") { // While it tries again, what went wrong stays visible.
    banner.hidden = true;
  }
}

export async function resolveConflict(app, keepsMine) {
  try {
    const state = await app.server.resolveConflict(keepsMine);
    if (keepsMine) return; // The server says whether that was saved.
    app.store.replace(moveToBake(state.project, app.bake, app.runs));
    clearTimeout(app.server.timer);
    app.server.isDirty = false;
    for (const layer of state.project.layers) if (layer.kind === "file") app.loadFile(layer.picture);
    showSaved(app, "saved");
  } catch (error) {
    showSaved(app, "failed", error.message);
  }
}

// The program answers again: go on with its state of the run, and save what it does not know.
export async function reconnect(app) {
  try {
    const state = await app.server.readState();
    showJob(app, state.job ?? { state: "none" });
    if (state.bake.fingerprint !== app.bake.fingerprint) await app.reopen(state, new app.source.constructor(state.bake_url));
    app.say("The program is back.");
    app.schedule(); // Frames that could not be loaded are loaded now.
    showSaved(app, app.server.isBlocked ? "conflict" : app.server.isDirty ? "unsaved" : "saved");
    if (app.server.isDirty) app.server.save();
  } catch (error) {
    app.say(error.message, true);
  }
}

export async function takeEvent(app, event) {
  if (event.event === "file") {
    const isUsed = app.store.project.layers.some((layer) => layer.kind === "file" && layer.picture === event.name);
    if (isUsed) await app.loadFile(event.name);
    return;
  }
  showJob(app, event);
  const name = JOB_NAMES[event.job];
  if (event.state === "running") app.say(`${name}: ${event.stage}`);
  if (event.state === "cancelled") app.say(`${name} was cancelled; nothing was changed`);
  if (event.state === "failed") app.say(`${name} failed: ${event.message}`, true);
  if (event.state !== "done") return;
  if (event.event === "bake") {
    const state = await app.server.readState();
    await app.reopen(state, new app.source.constructor(state.bake_url));
    app.say(event.is_chosen ? `This is the run ${event.run}` : `Refitted: the new run is ${event.run}. Under Mend you can go back to the run before.`);
  } else {
    app.say(`Exported to ${event.result}`);
    app.dialogs.showExported(event.result, event.file);
  }
}

export function showJob(app, job) {
  app.isBusy = job.state === "running";
  app.find("progress").hidden = app.find("cancel").hidden = !app.isBusy;
  if (app.isBusy) app.find("progress").value = job.progress;
  app.panels.update();
}

export async function startJob(app, kind, values) {
  if (app.isBusy) {
    app.say("Another job is still running; wait for it, or cancel it.", true);
    return;
  }
  try {
    await app.server.flush();
    await app.server.startJob(kind, values);
  } catch (error) {
    app.say(error.message, true);
  }
}
