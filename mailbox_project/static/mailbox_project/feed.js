// Rings when something happened on a thread: at once by its stream, and every other second while there is no stream.
//
// What happened is read from the rows by whoever hears the ring. Only live text comes by the stream alone: it is stored
// nowhere, and what was missed of it is in the message that follows.

const POLL_MS = 1500;
const AGAIN_MS = 5000;
// A stream that ended in order is back by then: nobody need be told.
const BACK_MS = 2500;

export class Feed {
  constructor({ url, cursor, kinds, ring, delta, state }) {
    Object.assign(this, { url, cursor, kinds, ring, delta, state });
    this.open();
  }

  open() {
    const source = (this.source = new EventSource(`${this.url}?cursor=${this.cursor}`));
    source.onopen = () => {
      clearTimeout(this.losing);
      clearInterval(this.timer);
      this.state("live");
      this.ring();
    };
    source.onerror = () => {
      // The browser reconnects after a broken stream by itself, and gives up on an answer that is none.
      const isGivenUp = source.readyState === EventSource.CLOSED;
      clearTimeout(this.losing);
      this.losing = setTimeout(() => this.poll(), isGivenUp ? 0 : BACK_MS);
      if (isGivenUp) setTimeout(() => this.open(), AGAIN_MS);
    };
    source.addEventListener("delta", (event) => this.delta(JSON.parse(event.data)));
    for (const kind of this.kinds) {
      source.addEventListener(kind, (event) => {
        this.cursor = Number(event.lastEventId) || this.cursor;
        this.ring();
      });
    }
  }

  poll() {
    clearInterval(this.timer);
    this.timer = setInterval(() => this.ring(), POLL_MS);
    this.state("polling");
    this.ring();
  }
}

// The live text of one run, for as long as it says anything.
export function listen(url, delta) {
  const source = new EventSource(url);
  source.addEventListener("delta", (event) => delta(JSON.parse(event.data)));
  return () => source.close();
}
