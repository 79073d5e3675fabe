// What the pointer does on the panes and the timeline.

export function listenToPointer(app) {
  const stage = app.find("paint-stage");
  let active = null;
  let pointer = null; // The first pointer draws; a palm or a second finger does not.
  const end = (action) => (event) => {
    if (event.pointerId !== pointer) return;
    pointer = null;
    app.isDragging = false;
    (active?.[action] ?? active?.up)?.call(active);
    active = null;
  };
  const placeOf = (event) => app.view.toPicture(app.view.screenOf(event));
  stage.addEventListener("pointerdown", (event) => {
    if (pointer !== null || event.button > 1) return;
    if (!app.frames.get(app.t)) {
      app.say("This frame is still being loaded.", true);
      return;
    }
    pointer = event.pointerId;
    app.isDragging = true;
    stage.setPointerCapture(event.pointerId);
    stage.focus({ preventScroll: true });
    active = event.button === 1 || (event.ctrlKey && app.isSpaceDown) ? app.tools.hand : app.tools[app.tool];
    active.down(placeOf(event), event);
    event.preventDefault();
  });
  stage.addEventListener("pointermove", (event) => {
    const events = event.getCoalescedEvents?.() ?? [];
    if (event.pointerId === pointer) for (const each of events.length ? events : [event]) active?.move?.(placeOf(each), each);
    app.drawMarks(app.view.screenOf(event));
  });
  stage.addEventListener("pointerup", end("up"));
  stage.addEventListener("pointercancel", end("cancel"));
  stage.addEventListener("pointerleave", () => app.drawMarks(null));
  stage.addEventListener("wheel", (event) => {
    app.view.zoomAt(app.view.screenOf(event), Math.exp(-event.deltaY * 0.0015));
    event.preventDefault();
  }, { passive: false });
  stage.addEventListener("dragover", (event) => event.preventDefault());
  stage.addEventListener("drop", (event) => {
    event.preventDefault();
    const file = event.dataTransfer.files[0];
    if (file) app.placePicture(file, placeOf(event));
  });
}

export function listenToTimeline(app) {
  const timeline = app.find("timeline");
  const frameOf = (event) => {
    const box = timeline.getBoundingClientRect();
    return Math.floor(((event.clientX - box.left) / box.width) * app.player.count);
  };
  listenToDrag(app, timeline, (event) => app.goTo(frameOf(event)));
  const line = app.find("wipe-line");
  listenToDrag(app, line, (event) => {
    const box = app.find("play-stage").getBoundingClientRect();
    app.wipe = Math.max(0, Math.min(1, (event.clientX - box.left - app.playArea.left) / app.playArea.width));
    app.fitPlayer();
    app.schedule();
  });
  const splitter = app.find("splitter");
  const setSplit = (share) => {
    app.split = Math.max(0.2, Math.min(0.85, share));
    app.find("paint-pane").style.flexGrow = 100 * app.split; // Sums below 1 would leave a part of the width empty.
    app.find("play-pane").style.flexGrow = 100 * (1 - app.split);
  };
  setSplit(0.5);
  listenToDrag(app, splitter, (event) => {
    const box = splitter.parentElement.getBoundingClientRect();
    setSplit((event.clientX - box.left) / box.width);
  });
  splitter.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -0.05, ArrowRight: 0.05 }[event.key];
    if (!step) return;
    setSplit(app.split + step);
    event.stopPropagation();
  });
}

export function listenToDrag(app, element, action) {
  element.addEventListener("pointerdown", (event) => {
    element.setPointerCapture(event.pointerId);
    action(event);
  });
  element.addEventListener("pointermove", (event) => {
    if (element.hasPointerCapture(event.pointerId)) action(event);
  });
}
