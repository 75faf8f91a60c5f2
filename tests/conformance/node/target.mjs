// What a client is checked against, and how a check is told: `tests/conformance/python/target.py`
// says the same for Python.

import assert from "node:assert/strict";
import { appendFileSync, readFileSync } from "node:fs";
import { after, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

const told = (name) => process.env[`CONFORMANCE_${name}`];

export const target = {
  baseURL: told("BASE_URL"),
  rootURL: told("BASE_URL").replace(/\/v1$/, ""),
  apiKey: told("API_KEY"),
  model: told("MODEL"),
  vllmURL: told("VLLM_URL"),
  asksForKeys: told("ASKS_FOR_KEYS") === "yes",
  embeddingsModel: told("EMBEDDINGS_MODEL"),
  embeddingsURL: told("EMBEDDINGS_URL"),
  vllmEmbeddingsURL: told("VLLM_EMBEDDINGS_URL"),
};

const questions = JSON.parse(readFileSync(new URL("../questions.json", import.meta.url), "utf8"));

export const TEXTS = questions.texts;
export const MAX_TOKENS = questions.max_tokens;
export const LONG = questions.long;
export const TOO_LONG = "word ".repeat(questions.too_long);
export const PARAMETERS = questions.parameters;
export const CITIES = PARAMETERS.properties.city.enum;
export const UNKNOWN_MODEL = questions.unknown_model;
export const WRONG_KEY = questions.wrong_key;
export const FORCED_TOOL = {
  tools: [
    {
      type: "function",
      // vLLM holds the arguments to their schema only with `strict`.
      function: { name: "get_weather", description: "Weather", parameters: PARAMETERS, strict: true },
    },
  ],
  tool_choice: { type: "function", function: { name: "get_weather" } },
};

export const NEEDS_KEYS = target.asksForKeys ? "" : "this vLLM asks for no key";

function tell(what) {
  appendFileSync(told("RESULTS"), `${JSON.stringify(what)}\n`);
}

// No check is missing for a process that ended before its time.
after(() => tell("end"));

/** One check of a feature. What became of it is written down as a line of JSON. */
export function check(feature, name, body, missing = "") {
  const write = (outcome, message) => tell({ feature, check: name, outcome, message });
  test(name, { timeout: 120_000 }, async (context) => {
    if (missing) {
      write("skipped", missing);
      context.skip(missing);
      return;
    }
    try {
      await body();
    } catch (error) {
      write("failed", `${error?.constructor?.name}: ${error?.message}`.split("\n")[0]);
      throw error;
    }
    write("passed", "");
  });
}

/** The body of a greedy chat. */
export function chat(text, fields = {}) {
  const messages = [{ role: "user", content: text }];
  return { model: target.model, messages, temperature: 0, max_tokens: MAX_TOKENS, ...fields };
}

/** vLLM's own answer. */
export async function vllm(path, body, url = target.vllmURL) {
  const headers = { "content-type": "application/json" };
  const answer = await fetch(`${url}${path}`, { method: "POST", headers, body: JSON.stringify(body) });
  assert.equal(answer.status, 200);
  return answer.json();
}

/** What vLLM itself says to a greedy chat. */
export async function saidByVLLM(text) {
  return (await vllm("/v1/chat/completions", chat(text))).choices[0].message.content;
}

/** What vLLM itself makes of TEXTS. */
export async function embeddedByVLLM() {
  const body = { model: target.embeddingsModel, input: TEXTS };
  const answer = await vllm("/v1/embeddings", body, target.vllmEmbeddingsURL);
  return answer.data.map((one) => one.embedding);
}

/** The same vectors, but for the last digits that an encoding may cost. */
export function assertClose(vectors, others) {
  assert.deepEqual(vectors.map((one) => one.length), others.map((one) => one.length));
  vectors.forEach((one, i) => one.forEach((x, j) => assert.ok(Math.abs(x - others[i][j]) < 1e-4)));
}

/** A stop word from the middle of a text, and what comes before it. */
export function cut(whole) {
  const stop = whole.slice(whole.length / 2).trim().slice(0, 3);
  return [stop, whole.slice(0, whole.indexOf(stop))];
}

async function metric(name, options) {
  const text = await (await fetch(`${target.vllmURL}/metrics`, options)).text();
  const found = text.matchAll(new RegExp(`^vllm:${name}{[^}]*} (\\S+)`, "gm"));
  return [...found].reduce((sum, [, value]) => sum + Number(value), 0);
}

/** Without metrics for so long, vLLM is busy: on the CPU, one request can keep its API from more. */
const BUSY_MS = 3000;

async function isBusy() {
  try {
    return (await metric("num_requests_running", { signal: AbortSignal.timeout(BUSY_MS) })) > 0;
  } catch (error) {
    if (error.name !== "TimeoutError") throw error;
    return true;
  }
}

/** Return once vLLM works on something, or on nothing. */
export async function untilBusy(wanted) {
  while ((await isBusy()) !== wanted) await sleep(50);
}

/** A request for LONG tokens that is left stops vLLM before they are made. */
export async function isLeft(leave) {
  await untilBusy(false);
  const before = await metric("generation_tokens_total");
  await leave();
  await untilBusy(false);
  const made = (await metric("generation_tokens_total")) - before;
  assert.ok(made > 0 && made < LONG, `vLLM made ${made} tokens`);
}
