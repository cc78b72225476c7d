// What the API's rows look like to people.

const SYSTEM = "system";
const MOST_TOLD = 40;
// What says nothing to who chats.
const COUNTERS = new Set(["attempt", "turn", "agent", "message_seq", "attempt_count", "schema_version"]);

export function textOf(message) {
  if (typeof message.content === "string") return message.content;
  return (message.content || []).filter((part) => part.type === "text").map((part) => part.text).join("\n");
}

export function timeOf(instant) {
  return new Date(instant).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
}

// The log: messages in their order, and after each run's last one how it ended, unless by itself.
export function entriesOf(messages, runs) {
  const last = new Map();
  const entries = messages.filter((message) => textOf(message)).map((message) => ({
    key: message.id,
    kind: message.role,
    who: message.role === "user" ? message.sender || "You" : message.role === "assistant" ? "Support" : message.role,
    run: message.producer_run_id || message.run_id || "",
    text: textOf(message),
  }));
  entries.forEach((entry, index) => last.set(entry.run, index));
  const notes = runs.filter((run) => last.has(run.id) && endOf(run));
  for (const run of notes.sort((one, other) => last.get(other.id) - last.get(one.id))) {
    const note = { key: `end-${run.id}`, kind: SYSTEM, who: "", run: run.id, text: endOf(run) };
    entries.splice(last.get(run.id) + 1, 0, note);
  }
  return entries;
}

function endOf(run) {
  if (run.status !== "done" || !run.termination || run.termination.type === "natural_end") return "";
  if (run.error) return `Failed: ${run.error.message}`;
  return run.termination.type === "cancelled" ? "Stopped." : `Ended: ${run.termination.type}.`;
}

// A question as a form: what its schema asks for beside `approved`, which is the two buttons.
export function questionOf(ticket) {
  const properties = Object.entries((ticket.schema && ticket.schema.properties) || {});
  const required = (ticket.schema && ticket.schema.required) || [];
  const isApproval = properties.some(([name, one]) => name === "approved" && one.type === "boolean");
  const fields = properties
    .filter(([, one]) => ["number", "integer", "string"].includes(one.type))
    .map(([name, one]) => ({
      name,
      label: one.title || name,
      isNumber: one.type !== "string",
      type: one.type === "string" ? "text" : "number",
      step: one.type === "number" ? "0.01" : null,
      min: one.minimum ?? null,
      max: one.maximum ?? null,
      maxlength: one.maxLength ?? null,
      required: required.includes(name),
      value: one.type === "number" && "default" in one ? one.default.toFixed(2) : one.default ?? "",
    }))
    // A stored schema has lost the order its author gave it.
    .sort((one, other) => other.isNumber - one.isNumber);
  return {
    ...ticket,
    isApproval,
    fields,
    facts: Object.entries(ticket.arguments || {}).map(([name, value]) => ({ name, value: plain(value) })),
    yes: isApproval ? "Approve" : "Answer",
    no: isApproval ? "Refuse" : "Do without",
    until: ticket.expires_at ? `until ${new Date(ticket.expires_at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" })}` : "",
  };
}

export function decisionOf(ticket, approved) {
  const payload = {};
  for (const field of ticket.fields) {
    const given = String(field.value).trim();
    // Who refuses may say why; how much it would have been is of no matter.
    if (given && (approved || !field.isNumber)) payload[field.name] = field.isNumber ? Number(given) : given;
  }
  if (!ticket.isApproval) return approved ? { action: "resume", payload } : { action: "cancel" };
  return { action: "resume", payload: { approved, ...payload } };
}

// An event in a few words: no ids, no zeros, nothing long.
export function eventOf(event) {
  const told = Object.entries(event.payload || {}).filter(([name, value]) => !name.endsWith("id") && brief(value));
  const text = told.filter(([name]) => !COUNTERS.has(name)).map(([, value]) => plain(value)).join(" · ");
  return { cursor: event.cursor, kind: event.kind, time: timeOf(event.created_at), text };
}

function brief(value) {
  const text = value ? plain(value) : "";
  return text && text.length <= MOST_TOLD && !text.includes("\n");
}

function plain(value) {
  return ["string", "number", "boolean"].includes(typeof value) ? String(value) : "";
}
