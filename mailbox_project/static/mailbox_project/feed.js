// Rings when something happened on a thread: at once by its stream, and every other second while there is no stream.
//
// What happened is read from the rows by whoever hears the ring. Only live text comes by the stream alone: it is stored
// nowhere, and what was missed of it is in the message that follows.

const POLL_MS = 1500;
const AGAIN_MS = 5000;

export class Feed {
  constructor({ url, cursor, kinds, ring, delta, state }) {
    Object.assign(this, { url, cursor, kinds, ring, delta, state });
    this.open();
  }

  open() {
    const source = (this.source = new EventSource(`${this.url}?cursor=${this.cursor}`));
    source.onopen = () => {
      this.poll(false);
      this.state("live");
      this.ring();
    };
    source.onerror = () => {
      this.poll(true);
      this.state("polling");
      // The browser reconnects after a broken stream by itself, and gives up on an answer that is none.
      if (source.readyState === EventSource.CLOSED) this.again = setTimeout(() => this.open(), AGAIN_MS);
    };
    source.addEventListener("delta", (event) => this.delta(JSON.parse(event.data)));
    for (const kind of this.kinds) {
      source.addEventListener(kind, (event) => {
        this.cursor = Number(event.lastEventId) || this.cursor;
        this.ring();
      });
    }
  }

  poll(wanted) {
    clearInterval(this.timer);
    if (wanted) this.timer = setInterval(() => this.ring(), POLL_MS);
  }
}
