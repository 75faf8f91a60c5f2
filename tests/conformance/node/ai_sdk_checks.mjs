// What is checked of Vercel's AI SDK with each of its providers.

import assert from "node:assert/strict";

import { APICallError, Output, embedMany, generateText, jsonSchema, streamText, tool } from "ai";

import * as suite from "./target.mjs";
import { CITIES, PARAMETERS, TEXTS, saidByVLLM, target } from "./target.mjs";

/**
 * The checks of one provider, by what they are of. `providerOf(fields)` makes the provider with
 * other fields, `chatModel(provider, name)` a model of it; `strict` is what its tools say.
 */
export function checksOf({ providerOf, chatModel = (provider, name) => provider(name), strict }) {
  const modelOf = (name, fields = {}) => chatModel(providerOf(fields), name);

  const asked = (prompt, fields = {}) => ({
    model: modelOf(target.model),
    prompt,
    temperature: 0,
    maxOutputTokens: suite.MAX_TOKENS,
    maxRetries: 0,
    ...fields,
  });
  const generated = (prompt, fields) => generateText(asked(prompt, fields));
  const streamed = (prompt, fields) => streamText(asked(prompt, fields));

  const forcedTool = {
    tools: { get_weather: tool({ inputSchema: jsonSchema(PARAMETERS), strict }) },
    toolChoice: { type: "tool", toolName: "get_weather" },
  };
  const isToolCall = ([call]) => {
    assert.equal(call.toolName, "get_weather");
    // vLLM holds the arguments to their schema only with `strict`.
    assert.ok(!strict || CITIES.includes(call.input.city));
  };

  const isUsage = ({ inputTokens, outputTokens }) =>
    assert.ok(inputTokens > 0 && outputTokens > 0);

  const isRefused = (answer, status) =>
    assert.rejects(
      answer,
      (error) => APICallError.isInstance(error) && error.statusCode === status && !!error.message,
    );

  return {
    asked,

    async chat() {
      const { text, usage } = await generated(TEXTS[0]);
      assert.equal(text, await saidByVLLM(TEXTS[0]));
      isUsage(usage);
    },

    async stream() {
      let said = "";
      for await (const part of streamed(TEXTS[0]).textStream) said += part;
      assert.equal(said, await saidByVLLM(TEXTS[0]));
    },

    async usage() {
      isUsage(await streamed("Hi").usage);
    },

    async text() {
      for (const text of TEXTS) assert.equal(await streamed(text).text, await saidByVLLM(text));
    },

    async tools() {
      isToolCall((await generated("Weather?", forcedTool)).toolCalls);
    },

    async streamTools() {
      isToolCall(await streamed("Weather?", forcedTool).toolCalls);
    },

    async schema() {
      const output = Output.object({ schema: jsonSchema(PARAMETERS) });
      assert.ok(CITIES.includes((await generated("Where?", { output })).output.city));
    },

    async stop() {
      const [stop, before] = suite.cut(await saidByVLLM(TEXTS[0]));
      const answer = await generated(TEXTS[0], { stopSequences: [stop] });
      assert.equal(answer.text, before);
      assert.equal(answer.finishReason, "stop");
    },

    /** `completionModel(provider, name)` makes the model. */
    async completion(completionModel) {
      // The SDK makes a dialogue of the prompt, and stops at the user's next line.
      let sent;
      const noting = (url, options) => {
        sent = JSON.parse(options.body);
        return fetch(url, options);
      };
      const model = completionModel(providerOf({ fetch: noting }), target.model);
      const { text } = await generated("Es war", { model, maxOutputTokens: 30 });
      assert.equal(text, (await suite.vllm("/v1/completions", sent)).choices[0].text);
    },

    async embeddings() {
      const embedder = providerOf({ baseURL: target.embeddingsURL });
      const model = embedder.embeddingModel(target.embeddingsModel);
      const { embeddings } = await embedMany({ model, values: TEXTS, maxRetries: 0 });
      suite.assertClose(embeddings, await suite.embeddedByVLLM());
    },

    async wrongKey() {
      const model = modelOf(target.model, { apiKey: suite.WRONG_KEY });
      await isRefused(generated("Hi", { model }), 401);
    },

    async unknownModel() {
      await isRefused(generated("Hi", { model: modelOf(suite.UNKNOWN_MODEL) }), 404);
    },

    async badRequest() {
      await isRefused(generated("Hi", { temperature: -1 }), 400);
      await isRefused(generated(suite.TOO_LONG), 400);
    },

    async leaving() {
      const keepGoing = (url, options) => {
        const body = JSON.stringify({ ...JSON.parse(options.body), ignore_eos: true });
        return fetch(url, { ...options, body });
      };
      const model = modelOf(target.model, { fetch: keepGoing });
      await suite.isLeft(async () => {
        const leaving = new AbortController();
        const fields = { model, maxOutputTokens: suite.LONG, abortSignal: leaving.signal };
        for await (const _ of streamed("Hi", fields).textStream) leaving.abort();
      });
    },

    async parallel() {
      const texts = [...Array(8).keys()].map((i) => `${TEXTS[i % 4]} ${i}`);
      const said = await Promise.all(texts.map((text) => streamed(text).text));
      for (const [i, text] of texts.entries()) assert.equal(said[i], await saidByVLLM(text));
    },
  };
}
