// The page: opens a run from the server, or from the page itself, and ties its parts together.

import { App } from "editor/app.js";
import { PageSource, ServerSource } from "editor/source.js";
import { Server } from "editor/sync.js";

export async function start() {
  try {
    const inline = document.getElementById("inline-run");
    if (inline) {
      const { files, ...run } = JSON.parse(inline.textContent);
      window.app = new App({ ...run, source: new PageSource(files), server: null });
    } else {
      const server = new Server();
      const state = await server.readState();
      server.revision = state.revision;
      window.app = new App({ ...state, source: new ServerSource(state.bake_url), server });
    }
    await window.app.begin();
  } catch (error) {
    showFailure(error);
  }
}

function showFailure(error) {
  const banner = document.getElementById("banner");
  banner.textContent = `The editor could not be opened: ${error.message}`;
  banner.hidden = false;
  console.error(error);
}
