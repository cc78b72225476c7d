// The REST API of this same process, with the session's cookie and its CSRF token.

const TRIES = 6;
const PAUSE_MS = 800;

export class Problem extends Error {
  // Problem details (RFC 9457); `code` is what to decide by. Without an answer: code "unreachable".
  constructor(status, body) {
    super(body.detail || body.title || `The server answered ${status}.`);
    this.status = status;
    this.code = body.code || "";
  }
}

export class Api {
  constructor(base) {
    this.base = base;
    this.token = document.querySelector("meta[name=csrf-token]").content;
  }

  get(path) {
    return this.ask("GET", path);
  }

  // Say a thing once, however often the network fails: the key makes the repeat harmless.
  async once(path, body) {
    const key = newKey();
    for (let tried = 1; ; tried += 1) {
      try {
        return await this.ask("POST", path, body, { "Idempotency-Key": key });
      } catch (error) {
        if (error.code !== "unreachable" || tried === TRIES) throw error;
        await new Promise((go) => setTimeout(go, PAUSE_MS * tried));
      }
    }
  }

  async ask(method, path, body, more = {}) {
    const headers = { Accept: "application/json", ...more };
    if (method !== "GET") headers["X-CSRFToken"] = this.token;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let answer;
    try {
      answer = await fetch(this.base + path, {
        method, headers, credentials: "same-origin", body: body === undefined ? undefined : JSON.stringify(body),
      });
    } catch {
      throw new Problem(0, { code: "unreachable", detail: "The server cannot be reached." });
    }
    const told = answer.status === 204 ? null : await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Problem(answer.status, told || {});
    return told;
  }
}

function newKey() {
  // randomUUID() is missing where the page came by plain HTTP from another machine.
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
