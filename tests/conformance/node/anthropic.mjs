// anthropic-typescript, whose own API vLLM serves too.

import assert from "node:assert/strict";

import Anthropic from "@anthropic-ai/sdk";

import * as suite from "./target.mjs";
import { CITIES, PARAMETERS, TEXTS, check, saidByVLLM, target } from "./target.mjs";

const clientOf = (fields = {}) =>
  new Anthropic({ baseURL: target.rootURL, apiKey: target.apiKey, maxRetries: 0, ...fields });
const client = clientOf();

const asked = (text, fields = {}) => ({
  model: target.model,
  messages: [{ role: "user", content: text }],
  max_tokens: suite.MAX_TOKENS,
  temperature: 0,
  ...fields,
});

const FORCED_TOOL = {
  tools: [{ name: "get_weather", description: "Weather", input_schema: PARAMETERS, strict: true }],
  tool_choice: { type: "tool", name: "get_weather" },
};

const streamed = (text) => client.messages.stream(asked(text)).finalText();

check("messages", "a message is the chat's text", async () => {
  const message = await client.messages.create(asked(TEXTS[0]));
  assert.equal(message.content[0].text, await saidByVLLM(TEXTS[0]));
  assert.equal(message.stop_reason, "end_turn");
});

check("messages-stream", "a streamed message is the chat's text", async () => {
  assert.equal(await streamed(TEXTS[0]), await saidByVLLM(TEXTS[0]));
});

check("usage", "a stream tells its usage", async () => {
  const message = await client.messages.stream(asked("Hi")).finalMessage();
  assert.ok(message.usage.output_tokens > 0);
});

check("count-tokens", "the count is what the message costs", async () => {
  const { model, messages } = asked(TEXTS[0]);
  const counted = await client.messages.countTokens({ model, messages });
  const message = await client.messages.create(asked(TEXTS[0]));
  assert.equal(counted.input_tokens, message.usage.input_tokens);
});

check("text", "multi-byte text is vLLM's to the letter", async () => {
  for (const text of TEXTS) assert.equal(await streamed(text), await saidByVLLM(text));
});

check("tools", "a forced tool is called", async () => {
  const message = await client.messages.create(asked("Weather?", FORCED_TOOL));
  const call = message.content.find((block) => block.type === "tool_use");
  assert.equal(call.name, "get_weather");
  assert.ok(CITIES.includes(call.input.city));
});

check("tools-stream", "a forced tool is called in a stream", async () => {
  const message = await client.messages.stream(asked("Weather?", FORCED_TOOL)).finalMessage();
  const call = message.content.find((block) => block.type === "tool_use");
  assert.equal(call.name, "get_weather");
  assert.ok(CITIES.includes(call.input.city));
});

check("schema", "an answer follows its schema", async () => {
  const output_config = { format: { type: "json_schema", schema: PARAMETERS } };
  const message = await client.messages.create(asked("Where?", { output_config }));
  assert.ok(CITIES.includes(JSON.parse(message.content[0].text).city));
});

check("stop", "a stop word ends the text", async () => {
  const [stop, before] = suite.cut(await saidByVLLM(TEXTS[0]));
  const message = await client.messages.create(asked(TEXTS[0], { stop_sequences: [stop] }));
  assert.equal(message.content[0].text, before);
});

check(
  "error-key",
  "a wrong key raises its class",
  async () => {
    const wrong = clientOf({ apiKey: suite.WRONG_KEY });
    await assert.rejects(wrong.messages.create(asked("Hi")), Anthropic.AuthenticationError);
  },
  suite.NEEDS_KEYS,
);

check("error-model", "an unknown model raises its class", async () => {
  const body = asked("Hi", { model: suite.UNKNOWN_MODEL });
  await assert.rejects(client.messages.create(body), Anthropic.NotFoundError);
  await assert.rejects(client.messages.create({ ...body, stream: true }), Anthropic.NotFoundError);
});

check("error-request", "a bad request raises its class", async () => {
  const body = asked(suite.TOO_LONG);
  await assert.rejects(client.messages.create(body), Anthropic.BadRequestError);
});

check("leaving", "a client that leaves its stream stops vLLM", async () => {
  const body = asked("Hi", { stream: true, max_tokens: suite.LONG, ignore_eos: true });
  await suite.isLeft(async () => {
    for await (const event of await client.messages.create(body)) {
      if (event.type === "content_block_delta") break;
    }
  });
});

check("parallel", "parallel streams do not mix", async () => {
  const texts = [...Array(8).keys()].map((i) => `${TEXTS[i % 4]} ${i}`);
  const said = await Promise.all(texts.map(streamed));
  for (const [i, text] of texts.entries()) assert.equal(said[i], await saidByVLLM(text));
});
