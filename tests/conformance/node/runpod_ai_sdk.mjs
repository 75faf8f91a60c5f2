// RunPod's own provider for Vercel's AI SDK, `@runpod/ai-sdk-provider`, pointed at the base URL.

import assert from "node:assert/strict";

import { createRunpod } from "@runpod/ai-sdk-provider";
import { APICallError, generateText, jsonSchema, streamText, tool } from "ai";

import * as suite from "./target.mjs";
import { CITIES, PARAMETERS, TEXTS, check, saidByVLLM, target } from "./target.mjs";

const providerOf = (fields = {}) =>
  createRunpod({ baseURL: target.baseURL, apiKey: target.apiKey, ...fields });
const provider = providerOf();

const asked = (prompt, fields = {}) => ({
  model: provider(target.model),
  prompt,
  temperature: 0,
  maxOutputTokens: suite.MAX_TOKENS,
  maxRetries: 0,
  ...fields,
});

// It sends no `strict`, without which vLLM does not hold the arguments to their schema.
const FORCED_TOOL = {
  tools: { get_weather: tool({ description: "Weather", inputSchema: jsonSchema(PARAMETERS) }) },
  toolChoice: { type: "tool", toolName: "get_weather" },
};

const streamed = (text) => streamText(asked(text)).text;

check("chat", "a chat is vLLM's", async () => {
  assert.equal((await generateText(asked(TEXTS[0]))).text, await saidByVLLM(TEXTS[0]));
});

check("stream", "a streamed chat is vLLM's", async () => {
  assert.equal(await streamed(TEXTS[0]), await saidByVLLM(TEXTS[0]));
});

check("usage", "a plain answer tells its usage", async () => {
  const { inputTokens, outputTokens } = (await generateText(asked("Hi"))).usage;
  assert.ok(inputTokens > 0 && outputTokens > 0);
});

check("text", "multi-byte text is vLLM's to the letter", async () => {
  for (const text of TEXTS) assert.equal(await streamed(text), await saidByVLLM(text));
});

check("tools", "a forced tool is called", async () => {
  const [call] = (await generateText(asked("Weather?", FORCED_TOOL))).toolCalls;
  assert.equal(call.toolName, "get_weather");
});

check("tools-stream", "a forced tool is called in a stream", async () => {
  const [call] = await streamText(asked("Weather?", FORCED_TOOL)).toolCalls;
  assert.equal(call.toolName, "get_weather");
});

check("stop", "a stop word ends the text", async () => {
  const [stop, before] = suite.cut(await saidByVLLM(TEXTS[0]));
  const answer = await generateText(asked(TEXTS[0], { stopSequences: [stop] }));
  assert.equal(answer.text, before);
});

const isRefused = (status) => (error) =>
  APICallError.isInstance(error) && error.statusCode === status && !!error.message;

check(
  "error-key",
  "a wrong key raises its class",
  async () => {
    const model = providerOf({ apiKey: suite.WRONG_KEY })(target.model);
    await assert.rejects(generateText(asked("Hi", { model })), isRefused(401));
  },
  suite.NEEDS_KEYS,
);

check("error-model", "an unknown model raises its class", async () => {
  const model = provider(suite.UNKNOWN_MODEL);
  await assert.rejects(generateText(asked("Hi", { model })), isRefused(404));
});

check("error-request", "a bad request raises its class", async () => {
  await assert.rejects(generateText(asked("Hi", { temperature: -1 })), isRefused(400));
});

check("leaving", "a client that leaves its stream stops vLLM", async () => {
  const providerOptions = { runpod: { ignore_eos: true } };
  await suite.isLeft(async () => {
    const leaving = new AbortController();
    const fields = { maxOutputTokens: suite.LONG, providerOptions, abortSignal: leaving.signal };
    for await (const _ of streamText(asked("Hi", fields)).textStream) leaving.abort();
  });
});

check("parallel", "parallel streams do not mix", async () => {
  const texts = [...Array(8).keys()].map((i) => `${TEXTS[i % 4]} ${i}`);
  const said = await Promise.all(texts.map(streamed));
  for (const [i, text] of texts.entries()) assert.equal(said[i], await saidByVLLM(text));
});
