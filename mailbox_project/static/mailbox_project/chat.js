// The page: state is what the rows say, read again whenever the feed rings.

import { Api } from "./api.js";
import { Feed, listen } from "./feed.js";
import { SILENT, heard, unsaid } from "./live.js";
import { decisionOf, entriesOf, eventOf, questionOf, textOf } from "./rows.js";

const FACTS = JSON.parse(document.getElementById("facts").textContent);
// Rings come in bunches: one transaction writes several events.
const SETTLE_MS = 40;
const MOST_EVENTS = 40;
const NEAR_PX = 120;
const LABELS = { new: "", live: "live", polling: "no stream: looking every 1.5 s", gone: "not found" };

function chat() {
  return {
    thread: FACTS.thread, text: "", draft: "", editing: "", problem: "", isBusy: false, connection: "new",
    messages: [], pending: [], revision: null, runs: [], tickets: [], events: [], threads: [],
    children: [], open: null, live: SILENT, childLive: SILENT, lastSeq: 0, lastCursor: 0,
    suggestions: ["Tell me about A-10420", "Refund A-10424", "Refund A-10420"],

    init() {
      this.api = new Api(FACTS.api);
      this.list();
      if (this.thread) this.enter();
    },

    // Reading

    async enter() {
      try {
        await this.read();
      } catch (error) {
        this.problem = error.message;
        this.connection = "gone";
        return;
      }
      this.feed = new Feed({
        url: `${FACTS.api}/threads/${this.thread}/events/stream`,
        cursor: this.lastCursor,
        kinds: FACTS.kinds,
        ring: () => this.refresh(),
        delta: (piece) => this.hear(piece),
        state: (state) => { this.connection = state; },
      });
    },

    // Read what the rows say now; a ring in the meantime makes it read once more.
    async refresh() {
      this.isStale = true;
      if (this.isReading) return;
      this.isReading = true;
      while (this.isStale) {
        await new Promise((go) => setTimeout(go, SETTLE_MS));
        this.isStale = false;
        try {
          await this.read();
          if (this.problem === this.unreadable) this.problem = "";
        } catch (error) {
          this.problem = this.unreadable = error.status === 401 || error.status === 403
            ? "Your session has ended: load the page again to sign in." : error.message;
        }
      }
      this.isReading = false;
    },

    async read() {
      const of = `/threads/${this.thread}`;
      // What is pending is read before the log, so that a message which is read meanwhile is seen at least once; and
      // runs before it too, so that a run which is done here has its last message there.
      const [pending, runs] = await Promise.all([
        this.pages(`${of}/pending?limit=200`, "after"), this.api.get(`${of}/runs?limit=50`),
      ]);
      const open = runs.items.find((run) => run.status === "running" || run.status === "waiting");
      const [messages, events, detail] = await Promise.all([
        this.pages(`${of}/messages?limit=200`, "after", this.lastSeq),
        this.pages(`${of}/events?limit=200`, "cursor", this.lastCursor),
        open ? this.api.get(`/runs/${open.id}`) : null,
      ]);
      const isNear = this.isNearEnd();
      this.runs = runs.items;
      this.open = detail && detail.status !== "done" ? detail : null;
      const known = new Set(this.messages.map((message) => message.id));
      const fresh = messages.items.filter((message) => !known.has(message.id));
      this.messages = [...this.messages, ...fresh.map((message) => ({ ...message, said: textOf(message) }))];
      this.lastSeq = messages.cursor;
      this.events = [...events.items.map(eventOf).reverse(), ...this.events].slice(0, MOST_EVENTS);
      this.lastCursor = events.cursor;
      events.items.forEach((event) => this.follow(event));
      this.watchChild();
      const read = new Set(this.messages.map((message) => message.id));
      this.pending = pending.items.filter((message) => !read.has(message.id)).map((message) => ({
        ...message, text: textOf(message), tag: message.held ? "held" : message.boundary === "next_step" ? "steering" : "",
      }));
      this.revision = pending.last.pending_revision;
      if (!this.pending.some((message) => message.id === this.editing)) this.editing = "";
      this.ask(this.open ? this.open.tickets : []);
      if (isNear) this.toEnd();
    },

    // All pages of a listing from a cursor on.
    async pages(path, name, cursor = 0) {
      const items = [];
      for (;;) {
        const last = await this.api.get(`${path}&${name}=${cursor}`);
        items.push(...last.items);
        cursor = last.next_cursor ?? cursor;
        if (!last.has_more) return { items, cursor, last };
      }
    },

    // The other conversations are a convenience: without them the page does as well.
    async list() {
      const page = await this.api.get("/threads?limit=50").catch(() => ({ items: [] }));
      this.threads = page.items.filter((thread) => thread.metadata.page === "chat").slice(0, 12).map((thread) => ({
        id: thread.id, title: thread.title || "Untitled", href: `${FACTS.home}${thread.id}/`,
        current: thread.id === this.thread ? "page" : null,
      }));
    },

    hear(piece) {
      const isNear = this.isNearEnd();
      this.live = heard(this.live, piece);
      if (isNear) this.toEnd();
    },

    // Which children have not ended, by what the thread's events tell.
    follow({ kind, payload }) {
      if (kind === "ChildRunSpawned") this.children = [...this.children, { id: payload.child_run_id, agent: payload.agent }];
      if (kind === "ChildRunEnded") this.children = this.children.filter((child) => child.id !== payload.child_run_id);
    },
    // While the run waits for a child, show what that one writes.
    watchChild() {
      const child = this.open && this.open.status === "waiting" ? this.children.at(-1) : undefined;
      if ((child && child.id) === this.watched) return;
      if (this.unwatch) this.unwatch();
      this.watched = child && child.id;
      this.childLive = SILENT;
      const hear = (piece) => {
        const isNear = this.isNearEnd();
        this.childLive = heard(this.childLive, piece);
        if (isNear) this.toEnd();
      };
      this.unwatch = child ? listen(`${FACTS.api}/runs/${child.id}/events/stream?cursor=0`, hear) : null;
    },

    // A form that is being filled in is left as it is.
    ask(tickets) {
      const known = new Map(this.tickets.map((ticket) => [ticket.ticket_id, ticket]));
      const ids = tickets.map((ticket) => ticket.ticket_id).join();
      if (ids !== [...known.keys()].join()) {
        this.tickets = tickets.map((ticket) => known.get(ticket.ticket_id) || questionOf(ticket));
      }
    },

    // Showing

    get connectionLabel() { return LABELS[this.connection]; },
    get isEmpty() { return !this.messages.length && !this.pending.length && this.connection !== "gone"; },
    get entries() { return entriesOf(this.messages, this.runs); },
    get liveText() { return this.open && this.open.id === this.live.run ? unsaid(this.live, this.messages) : ""; },
    get liveWho() { return this.live.attempt > 1 ? `Support, attempt ${this.live.attempt}` : "Support"; },
    get childText() { return this.watched ? this.childLive.text : ""; },
    get childWho() { return this.children.length ? `${this.children.at(-1).agent}, a child run` : ""; },
    get hasHeld() { return this.pending.some((message) => message.held); },
    get queueLabel() { return this.hasHeld ? "Held, since you stopped" : this.open ? "Up next" : "Not read yet"; },
    get canSend() { return Boolean(this.text.trim()); },
    get placeholder() { return this.open ? "Say more: it waits for its turn, or steers" : "Ask about an order"; },

    get runState() { return this.open ? this.open.status : "queued"; },
    get status() {
      const run = this.open;
      if (!run) return this.pending.some((message) => !message.held) ? "Waits for a worker" : "";
      if (run.status === "running") return this.liveText ? "Writing" : "Working";
      const { reason, message } = run.waiting || {};
      if (reason === "tool_permission") return "Waits for your decision; no worker is kept";
      if (reason === "background_tasks") return `Waits for a child run${message ? `: ${message}` : ""}; no worker is kept`;
      return "Waits for your answer; no worker is kept";
    },

    isNearEnd() {
      const log = this.$refs.log;
      return log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_PX;
    },
    toEnd() { this.$nextTick(() => { this.$refs.log.scrollTop = this.$refs.log.scrollHeight; }); },
    grow() {
      const area = this.$refs.text;
      area.rows = Math.min(6, Math.max(1, area.value.split("\n").length));
    },
    dismiss() { this.problem = ""; },

    // Acting

    // Do one thing, tell what went wrong with it, and look at the rows: whoever was quicker changed them.
    async attempt(act) {
      this.isBusy = true;
      this.problem = "";
      try {
        await act();
        return true;
      } catch (error) {
        this.problem = error.code === "already_consumed" ? "Too late: that has just been read."
          : error.code === "revision_conflict" ? "That has been changed meanwhile; please look again."
          : error.message;
        return false;
      } finally {
        this.isBusy = false;
      }
    },
    async act(change) {
      const done = await this.attempt(change);
      this.refresh();
      return done;
    },

    say(text) {
      this.text = text;
      this.send("enqueue");
    },
    // One after the other, in the order they were said, however slow the server is.
    send(ifActive) {
      const content = this.text.trim();
      if (!content) return;
      this.text = "";
      this.$nextTick(() => { this.grow(); this.$refs.text.focus(); });
      this.sent = (this.sent || Promise.resolve()).then(() => this.post(content, ifActive));
    },
    async post(content, ifActive) {
      const done = await this.attempt(async () => {
        if (!this.thread) await this.begin(content);
        // Once a run has been, a message goes to its agent unless it names another.
        const agent = this.runs.length ? undefined : FACTS.agent;
        await this.api.once(`/threads/${this.thread}/messages`, {
          messages: [{ content }], agent, if_active: this.open ? ifActive : "enqueue",
        });
      });
      if (done) this.toEnd();
      else if (!this.text) this.text = content;
      if (this.feed) this.refresh();
      else if (this.thread) await this.enter();
    },
    async begin(title) {
      const thread = await this.api.once("/threads", { title: title.slice(0, 60), metadata: { page: "chat" } });
      this.thread = thread.id;
      history.replaceState(null, "", `${FACTS.home}${thread.id}/`);
      this.list();
    },
    key(event) {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send(event.ctrlKey || event.metaKey ? "steer" : "enqueue");
    },

    stop() { return this.act(() => this.api.ask("POST", `/threads/${this.thread}/interrupt?wait=2`, {})); },
    release() { return this.act(() => this.api.ask("POST", `/threads/${this.thread}/pending/release`, {})); },
    decide(ticket, approved) {
      const body = { ticket_id: ticket.ticket_id, decision_id: `page-${ticket.ticket_id}-${approved}`, ...decisionOf(ticket, approved) };
      return this.act(async () => {
        await this.api.ask("POST", `/runs/${this.open.id}/decision`, body);
        this.$refs.text.focus();
      });
    },

    edit(message) {
      this.editing = message.id;
      this.draft = message.text;
      this.$nextTick(() => document.getElementById(`edit-${message.id}`).focus());
    },
    cancelEdit() { this.editing = ""; },
    editKey(event, message) {
      if (event.key === "Escape") this.cancelEdit();
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.save(message);
    },
    async save(message) {
      const content = this.draft.trim();
      if (!content) return;
      const path = `/threads/${this.thread}/pending/${message.id}`;
      if (await this.act(() => this.api.ask("PATCH", path, { content, revision: message.revision }))) this.editing = "";
    },
    withdraw(message) {
      const path = `/threads/${this.thread}/pending/${message.id}?revision=${message.revision}`;
      return this.act(() => this.api.ask("DELETE", path));
    },
    move(index, by) {
      const ids = this.pending.map((message) => message.id);
      ids.splice(index + by, 0, ...ids.splice(index, 1));
      const body = { message_ids: ids, pending_revision: this.revision };
      return this.act(() => this.api.ask("PUT", `/threads/${this.thread}/pending/order`, body));
    },
  };
}

document.addEventListener("alpine:init", () => window.Alpine.data("chat", chat));
