// Vercel's AI SDK with `@ai-sdk/openai-compatible`, its provider for servers such as ours.

import assert from "node:assert/strict";

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, embedMany, generateText, jsonSchema, streamText, tool } from "ai";

import * as suite from "./target.mjs";
import { CITIES, PARAMETERS, TEXTS, check, saidByVLLM, target } from "./target.mjs";

const providerOf = (fields = {}) =>
  createOpenAICompatible({
    name: "runpod",
    baseURL: target.baseURL,
    apiKey: target.apiKey,
    includeUsage: true,
    supportsStructuredOutputs: true,
    ...fields,
  });
const provider = providerOf();

const asked = (prompt, fields = {}) => ({
  model: provider(target.model),
  prompt,
  temperature: 0,
  maxOutputTokens: suite.MAX_TOKENS,
  maxRetries: 0,
  ...fields,
});

const FORCED_TOOL = {
  tools: {
    get_weather: tool({
      description: "Weather",
      inputSchema: jsonSchema(PARAMETERS),
      strict: true,
    }),
  },
  toolChoice: { type: "tool", toolName: "get_weather" },
};

const streamed = (text) => streamText(asked(text)).text;

check("chat", "a chat is vLLM's", async () => {
  const { text, usage } = await generateText(asked(TEXTS[0]));
  assert.equal(text, await saidByVLLM(TEXTS[0]));
  assert.ok(usage.outputTokens > 0);
});

check("stream", "a streamed chat is vLLM's", async () => {
  let said = "";
  for await (const part of streamText(asked(TEXTS[0])).textStream) said += part;
  assert.equal(said, await saidByVLLM(TEXTS[0]));
});

check("usage", "a stream tells its usage", async () => {
  const { inputTokens, outputTokens } = await streamText(asked("Hi")).usage;
  assert.ok(inputTokens > 0 && outputTokens > 0);
});

check("text", "multi-byte text is vLLM's to the letter", async () => {
  for (const text of TEXTS) assert.equal(await streamed(text), await saidByVLLM(text));
});

check("tools", "a forced tool is called", async () => {
  const [call] = (await generateText(asked("Weather?", FORCED_TOOL))).toolCalls;
  assert.equal(call.toolName, "get_weather");
  assert.ok(CITIES.includes(call.input.city));
});

check("tools-stream", "a forced tool is called in a stream", async () => {
  const [call] = await streamText(asked("Weather?", FORCED_TOOL)).toolCalls;
  assert.equal(call.toolName, "get_weather");
  assert.ok(CITIES.includes(call.input.city));
});

check("schema", "an answer follows its schema", async () => {
  const output = Output.object({ schema: jsonSchema(PARAMETERS) });
  const answer = await generateText(asked("Where?", { output }));
  assert.ok(CITIES.includes(answer.output.city));
});

check("stop", "a stop word ends the text", async () => {
  const [stop, before] = suite.cut(await saidByVLLM(TEXTS[0]));
  const answer = await generateText(asked(TEXTS[0], { stopSequences: [stop] }));
  assert.equal(answer.text, before);
  assert.equal(answer.finishReason, "stop");
});

check("completions", "a completion is vLLM's", async () => {
  // The SDK makes a dialogue of the prompt, and stops at the user's next line.
  let sent;
  const noting = (url, options) => {
    sent = JSON.parse(options.body);
    return fetch(url, options);
  };
  const model = providerOf({ fetch: noting }).completionModel(target.model);
  const { text } = await generateText(asked("Es war", { model, maxOutputTokens: 30 }));
  assert.equal(text, (await suite.vllm("/v1/completions", sent)).choices[0].text);
});

check("embeddings", "embeddings are vLLM's", async () => {
  const embedder = providerOf({ baseURL: target.embeddingsURL });
  const model = embedder.embeddingModel(target.embeddingsModel);
  const { embeddings } = await embedMany({ model, values: TEXTS, maxRetries: 0 });
  suite.assertClose(embeddings, await suite.embeddedByVLLM());
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
  await assert.rejects(generateText(asked(suite.TOO_LONG)), isRefused(400));
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
