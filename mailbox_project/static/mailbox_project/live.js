// Live text of one run: pieces with the place where they belong, of one activation after the other.

export const SILENT = { run: "", activation: "", attempt: 0, start: 0, text: "" };

export function heard(live, { run_id: run, activation, attempt, offset, text }) {
  const isNew = run !== live.run || activation !== live.activation || offset === 0;
  if (isNew) return { run, activation, attempt, start: offset, text };
  const place = offset - live.start;
  // A gap is not filled: the message that follows has all of it.
  if (place < 0 || place > live.text.length) return { ...live, start: offset - live.text.length, text: live.text + text };
  return { ...live, text: live.text.slice(0, place) + text };
}

// What of it is no message yet.
export function unsaid(live, messages) {
  let text = live.text;
  for (const message of messages) {
    if (message.producer_run_id === live.run && message.said && text.startsWith(message.said)) {
      text = text.slice(message.said.length).trimStart();
    }
  }
  return text;
}
