// A chat with any model, streamed. The session asks by /admin/chat: the page never has a key.

import { byId, make, seconds } from "./dom.js";
import { events } from "./events.js";

const log = byId("chat-log");
const state = byId("chat-state");
const wait = byId("chat-wait");
const trouble = byId("chat-error");
const start = byId("chat-start");
const text = byId("chat-text");
const model = byId("chat-model");
const stop = byId("chat-stop");

let messages = [];
let asking = null;
let endpoints = [];

// The models to choose from, and how their endpoints are.
export const know = (models, told) => {
  endpoints = told;
  const names = models.map(({ id }) => id);
  if (names.join("\n") !== [...model.options].map(({ value }) => value).join("\n")) {
    const chosen = model.value;
    model.replaceChildren(...names.map((id) => make("option", { value: id }, id)));
    if (names.includes(chosen)) model.value = chosen;
  }
};

export const isWaiting = () => asking !== null && !asking.first;

// A screen reader says what is told here, so only what has changed is.
const tell = (words) => {
  if (state.textContent !== words) state.textContent = words;
};

// While nothing comes: for how long, and what is known of a start that is waited for.
const tellWaiting = () => {
  if (!isWaiting()) return;
  const waited = (performance.now() - asking.began) / 1000;
  const found = endpoints.find(({ models }) => models.includes(asking.model));
  const usual = found?.start?.usual_seconds;
  const isCold = asking.about || (found && !["ready", "unknown"].includes(found.state));
  tell(isCold ? `Waiting for a worker (${found?.state ?? "cold"})` : "Waiting");
  wait.textContent = `${Math.round(waited)} s${asking.about}`;
  start.hidden = !(isCold && usual);
  if (usual) {
    start.max = usual;
    start.value = Math.min(waited, usual);
  }
};

// A comment such as `queued 40 s, loading weights, usually 95 s`.
const noteComment = (comment) => {
  if (comment.startsWith("queued")) asking.about = comment.replace(/^queued( \d+ s)?/, "");
  tellWaiting();
};

const endWaiting = () => {
  start.hidden = true;
  wait.textContent = "";
};

const show = (role, content) => {
  const body = make("pre", {}, content);
  const thoughts = make("pre");
  const reasoning = make("details", { hidden: "" }, make("summary", {}, "Reasoning"), thoughts);
  const footer = make("footer");
  const name = role === "user" ? "You" : model.value;
  const heading = make("b", {}, name);
  log.append(make("div", { class: `message ${role}` }, heading, reasoning, body, footer));
  log.scrollTop = log.scrollHeight;
  return { body, thoughts, reasoning, footer };
};

const grow = (element, piece) => {
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  element.append(piece);
  if (isAtEnd) log.scrollTop = log.scrollHeight;
};

const noteChunk = (chunk, shown) => {
  if (chunk.error) throw new Error(chunk.error.message);
  if (chunk.usage) asking.usage = chunk.usage;
  const delta = chunk.choices?.[0]?.delta ?? {};
  const thought = delta.reasoning_content ?? delta.reasoning;
  if (thought) {
    shown.reasoning.hidden = false;
    grow(shown.thoughts, thought);
  }
  if (!delta.content) return;
  if (!asking.first) {
    asking.first = performance.now();
    endWaiting();
    tell("Answering");
  }
  grow(shown.body, delta.content);
};

const summary = () => {
  const end = performance.now();
  const tokens = asking.usage?.completion_tokens;
  const parts = [`whole answer after ${seconds((end - asking.began) / 1000)}`];
  if (asking.first) {
    parts.unshift(`first token after ${seconds((asking.first - asking.began) / 1000)}`);
    const rate = tokens / ((end - asking.first) / 1000);
    if (tokens > 1 && Number.isFinite(rate)) parts.push(`${rate.toFixed(1)} tokens/s`);
  }
  if (tokens) parts.push(`${tokens} tokens`);
  if (asking.job) parts.push(`job ${asking.job}`);
  return parts.join(", ");
};

const ask = async (shown) => {
  const answer = await fetch("/admin/chat", {
    method: "POST",
    headers: { "content-type": "application/json" },
    signal: asking.abort.signal,
    body: JSON.stringify({
      model: asking.model,
      messages,
      stream: true,
      stream_options: { include_usage: true },
      max_tokens: Number(byId("chat-tokens").value) || 512,
    }),
  });
  if (!answer.ok) {
    const body = await answer.json().catch(() => null);
    throw new Error(body?.error?.message ?? `The proxy answered ${answer.status}.`);
  }
  asking.job = answer.headers.get("x-runpod-job-id");
  for await (const event of events(answer)) {
    if (event.data === "[DONE]") continue;
    if (event.data === undefined) noteComment(event.comment);
    else noteChunk(JSON.parse(event.data), shown);
  }
};

const send = async () => {
  const said = text.value.trim();
  if (asking || !said) return;
  trouble.textContent = model.value ? "" : "There is no model to ask.";
  if (!model.value) return;
  text.value = "";
  messages.push({ role: "user", content: said });
  show("user", said);
  const shown = show("assistant", "");
  asking = { model: model.value, began: performance.now(), abort: new AbortController(), about: "" };
  const ticking = setInterval(tellWaiting, 1000);
  text.focus(); // a button that is disabled would lose it
  byId("chat-send").disabled = true;
  stop.disabled = false;
  log.ariaBusy = "true";
  tellWaiting();
  try {
    await ask(shown);
    state.textContent = "Done";
  } catch (error) {
    const wasStopped = error.name === "AbortError";
    state.textContent = wasStopped ? "Stopped" : "";
    if (!wasStopped) trouble.textContent = error.message;
  } finally {
    shown.footer.textContent = summary();
    messages.push({ role: "assistant", content: shown.body.textContent });
    clearInterval(ticking);
    asking = null;
    endWaiting();
    byId("chat-send").disabled = false;
    if (document.activeElement === stop) text.focus();
    stop.disabled = true;
    log.ariaBusy = "false";
    log.scrollTop = log.scrollHeight;
  }
};

byId("chat-form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
text.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
stop.addEventListener("click", () => asking?.abort.abort());
byId("chat-clear").addEventListener("click", () => {
  asking?.abort.abort();
  messages = [];
  log.replaceChildren();
  state.textContent = trouble.textContent = "";
  text.focus();
});
