// Vercel's AI SDK with `@ai-sdk/openai`, OpenAI's own provider, pointed at the base URL.

import assert from "node:assert/strict";

import { createOpenAI } from "@ai-sdk/openai";
import { generateText, streamText } from "ai";

import { checksOf } from "./ai_sdk_checks.mjs";
import { NEEDS_KEYS, TEXTS, check, saidByVLLM, target } from "./target.mjs";

const providerOf = (fields = {}) =>
  createOpenAI({ baseURL: target.baseURL, apiKey: target.apiKey, ...fields });
const chatModel = (provider, name) => provider.chat(name);
const checks = checksOf({ providerOf, chatModel, strict: true });
const { asked } = checks;

check("chat", "a chat is vLLM's", checks.chat);
check("stream", "a streamed chat is vLLM's", checks.stream);
check("usage", "a stream tells its usage", checks.usage);
check("text", "multi-byte text is vLLM's to the letter", checks.text);
check("tools", "a forced tool is called", checks.tools);
check("tools-stream", "a forced tool is called in a stream", checks.streamTools);
check("schema", "an answer follows its schema", checks.schema);
check("stop", "a stop word ends the text", checks.stop);
check("completions", "a completion is vLLM's", () =>
  checks.completion((provider, name) => provider.completion(name)),
);
check("embeddings", "embeddings are vLLM's", checks.embeddings);
check("error-key", "a wrong key raises its class", checks.wrongKey, NEEDS_KEYS);
check("error-model", "an unknown model raises its class", checks.unknownModel);
check("error-request", "a bad request raises its class", checks.badRequest);
check("leaving", "a client that leaves its stream stops vLLM", checks.leaving);
check("parallel", "parallel streams do not mix", checks.parallel);

check("logprobs", "every token has logprobs", async () => {
  const providerOptions = { openai: { logprobs: 2 } };
  const answer = await generateText(asked("Hi", { providerOptions }));
  const { logprobs } = answer.finalStep.providerMetadata.openai;
  assert.equal(logprobs.length, answer.usage.outputTokens);
});

check("responses", "a response is the chat's text", async () => {
  const model = providerOf().responses(target.model);
  assert.equal((await generateText(asked(TEXTS[0], { model }))).text, await saidByVLLM(TEXTS[0]));
});

check("responses-stream", "a streamed response is the chat's text", async () => {
  const model = providerOf().responses(target.model);
  assert.equal(await streamText(asked(TEXTS[1], { model })).text, await saidByVLLM(TEXTS[1]));
});
