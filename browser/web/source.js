// Where the files of a baked run come from: the server, or the page itself if it was exported as one file.

export class ServerSource {
  constructor(base) {
    this.base = base; // such as "bake/1f2e/"
  }

  async blob(name) {
    const answer = await fetch(this.base + name);
    if (!answer.ok) throw new Error(`${name} could not be loaded (${answer.status})`);
    return answer.blob();
  }

  async buffer(name) {
    return (await this.blob(name)).arrayBuffer();
  }

  url(name) {
    return this.base + name;
  }
}

export class PageSource {
  // files: content by name, in base64
  constructor(files) {
    this.files = files;
    this.urls = new Map();
  }

  async buffer(name) {
    const text = atob(this.files[name]);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return bytes.buffer;
  }

  async blob(name) {
    const kinds = { jpg: "image/jpeg", png: "image/png", m4a: "audio/mp4", bin: "application/octet-stream" };
    return new Blob([await this.buffer(name)], { type: kinds[name.split(".").pop()] });
  }

  url(name) {
    if (!this.urls.has(name)) {
      const kind = name.endsWith(".m4a") ? "audio/mp4" : "image/jpeg";
      this.urls.set(name, `data:${kind};base64,${this.files[name]}`);
    }
    return this.urls.get(name);
  }
}
