// Server-sent events over fetch, because EventSource cannot send an Authorization header.

import { address, authorize, headers } from "./api.js";

const WAITS = [500, 1000, 2000, 5000, 10000]; // milliseconds before the next attempt
const SILENCE = 45000; // three missed keep-alives: the connection is dead although nobody said so

/** Splits a text stream into SSE messages {event, data, id}; comments only prove that the line is alive. */
export function makeParser(emit) {
  let buffer = "";
  return (text) => {
    buffer += text.replace(/\r\n?/g, "\n");
    let end;
    while ((end = buffer.indexOf("\n\n")) >= 0) {
      const message = { event: "message", data: [], id: null };
      for (const line of buffer.slice(0, end).split("\n")) {
        if (!line || line.startsWith(":")) continue;
        const colon = line.indexOf(":");
        const field = colon < 0 ? line : line.slice(0, colon);
        const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
        if (field === "data") message.data.push(value);
        else if (field in message) message[field] = value;
      }
      buffer = buffer.slice(end + 2);
      if (message.data.length) emit({ ...message, data: message.data.join("\n") });
    }
  };
}

/**
 * Follows v1/stream for ever. `onMessage(data)` gets the parsed JSON of each "runs" event, `onState(state)` one of
 * "live", "connecting" or "lost".
 */
export async function follow(onMessage, onState) {
  let last = null;
  let attempt = 0;
  for (;;) {
    const control = new AbortController();
    let watchdog = setTimeout(() => control.abort(), SILENCE);
    try {
      onState(attempt === 0 ? "connecting" : "lost");
      const sent = headers();
      const response = await fetch(address("v1/stream"), {
        headers: { Accept: "text/event-stream", ...sent, ...(last === null ? {} : { "Last-Event-ID": last }) },
        cache: "no-store",
        signal: control.signal,
      });
      if (response.status === 401) {
        clearTimeout(watchdog);
        if (sent.Authorization === headers().Authorization) await authorize();
        continue;
      }
      if (!response.ok) throw new Error(`status ${response.status}`);
      onState("live");
      attempt = 0;
      const parse = makeParser((message) => {
        if (message.id !== null) last = message.id;
        if (message.event === "runs") onMessage(JSON.parse(message.data));
      });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        clearTimeout(watchdog);
        watchdog = setTimeout(() => control.abort(), SILENCE);
        parse(value);
      }
    } catch (error) {
      if (!(error instanceof TypeError || error instanceof DOMException)) console.warn("stream:", error.message);
    } finally {
      clearTimeout(watchdog);
    }
    onState("lost");
    await new Promise((resolve) => setTimeout(resolve, WAITS[Math.min(attempt, WAITS.length - 1)]));
    attempt += 1;
  }
}
