// Vercel's AI SDK with `@ai-sdk/openai`, OpenAI's own provider, pointed at the base URL.

import assert from "node:assert/strict";

import { createOpenAI } from "@ai-sdk/openai";
import { APICallError, Output, embedMany, generateText, jsonSchema, streamText, tool } from "ai";

import * as suite from "./target.mjs";
import { CITIES, PARAMETERS, TEXTS, check, saidByVLLM, target } from "./target.mjs";

const providerOf = (fields = {}) =>
  createOpenAI({ baseURL: target.baseURL, apiKey: target.apiKey, ...fields });
const provider = providerOf();

const asked = (prompt, fields = {}) => ({
  model: provider.chat(target.model),
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

check("chat", "a chat is vLLM's", async () => {
  const { text } = await generateText(asked(TEXTS[0]));
  assert.equal(text, await saidByVLLM(TEXTS[0]));
});

check("stream", "a streamed chat is vLLM's", async () => {
  assert.equal(await streamText(asked(TEXTS[0])).text, await saidByVLLM(TEXTS[0]));
});

check("usage", "a stream tells its usage", async () => {
  const { inputTokens, outputTokens } = await streamText(asked("Hi")).usage;
  assert.ok(inputTokens > 0 && outputTokens > 0);
});

check("text", "multi-byte text is vLLM's to the letter", async () => {
  for (const text of TEXTS) {
    assert.equal(await streamText(asked(text)).text, await saidByVLLM(text));
  }
});

check("tools", "a forced tool is called", async () => {
  const [call] = (await generateText(asked("Weather?", FORCED_TOOL))).toolCalls;
  assert.ok(CITIES.includes(call.input.city));
});

check("tools-stream", "a forced tool is called in a stream", async () => {
  const [call] = await streamText(asked("Weather?", FORCED_TOOL)).toolCalls;
  assert.ok(CITIES.includes(call.input.city));
});

check("schema", "an answer follows its schema", async () => {
  const output = Output.object({ schema: jsonSchema(PARAMETERS) });
  const answer = await generateText(asked("Where?", { output }));
  assert.ok(CITIES.includes(answer.output.city));
});

check("logprobs", "every token has logprobs", async () => {
  const providerOptions = { openai: { logprobs: 2 } };
  const answer = await generateText(asked("Hi", { providerOptions }));
  const { logprobs } = answer.finalStep.providerMetadata.openai;
  assert.equal(logprobs.length, answer.usage.outputTokens);
});

check("stop", "a stop word ends the text", async () => {
  const [stop, before] = suite.cut(await saidByVLLM(TEXTS[0]));
  const answer = await generateText(asked(TEXTS[0], { stopSequences: [stop] }));
  assert.equal(answer.text, before);
});

check("completions", "a completion is vLLM's", async () => {
  // The SDK makes a dialogue of the prompt, and stops at the user's next line.
  let sent;
  const noting = (url, options) => {
    sent = JSON.parse(options.body);
    return fetch(url, options);
  };
  const model = providerOf({ fetch: noting }).completion(target.model);
  const { text } = await generateText(asked("Es war", { model, maxOutputTokens: 30 }));
  assert.equal(text, (await suite.vllm("/v1/completions", sent)).choices[0].text);
});

check("responses", "a response is the chat's text", async () => {
  const { text } = await generateText(asked(TEXTS[0], { model: provider.responses(target.model) }));
  assert.equal(text, await saidByVLLM(TEXTS[0]));
});

check("responses-stream", "a streamed response is the chat's text", async () => {
  const answer = streamText(asked(TEXTS[1], { model: provider.responses(target.model) }));
  assert.equal(await answer.text, await saidByVLLM(TEXTS[1]));
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
    const model = providerOf({ apiKey: suite.WRONG_KEY }).chat(target.model);
    await assert.rejects(generateText(asked("Hi", { model })), isRefused(401));
  },
  suite.NEEDS_KEYS,
);

check("error-model", "an unknown model raises its class", async () => {
  const model = provider.chat(suite.UNKNOWN_MODEL);
  await assert.rejects(generateText(asked("Hi", { model })), isRefused(404));
});

check("error-request", "a bad request raises its class", async () => {
  await assert.rejects(generateText(asked(suite.TOO_LONG)), isRefused(400));
});

check("leaving", "a client that leaves its stream stops vLLM", async () => {
  await suite.isLeft(async () => {
    const leaving = new AbortController();
    const keepGoing = (url, options) => {
      const body = JSON.stringify({ ...JSON.parse(options.body), ignore_eos: true });
      return fetch(url, { ...options, body });
    };
    const model = providerOf({ fetch: keepGoing }).chat(target.model);
    const fields = { model, maxOutputTokens: suite.LONG, abortSignal: leaving.signal };
    for await (const _ of streamText(asked("Hi", fields)).textStream) leaving.abort();
  });
});

check("parallel", "parallel requests do not mix", async () => {
  const texts = [...Array(8).keys()].map((i) => `${TEXTS[i % 4]} ${i}`);
  const answers = await Promise.all(texts.map((text) => generateText(asked(text))));
  for (const [i, text] of texts.entries()) assert.equal(answers[i].text, await saidByVLLM(text));
});
