// openai-node.

import assert from "node:assert/strict";

import OpenAI from "openai";

import * as suite from "./target.mjs";
import { CITIES, FORCED_TOOL, PARAMETERS, TEXTS, chat, check, saidByVLLM, target } from "./target.mjs";

const clientOf = (fields = {}) =>
  new OpenAI({ baseURL: target.baseURL, apiKey: target.apiKey, maxRetries: 0, ...fields });
const client = clientOf();
const asked = { model: target.model, temperature: 0, max_output_tokens: suite.MAX_TOKENS };

async function streamed(text) {
  let said = "";
  for await (const chunk of await client.chat.completions.create(chat(text, { stream: true }))) {
    for (const choice of chunk.choices) said += choice.delta.content ?? "";
  }
  return said;
}

check("models", "the model is listed", async () => {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  assert.ok(names.includes(target.model));
});

check("chat", "a chat is vLLM's", async () => {
  const answer = await client.chat.completions.create(chat(TEXTS[0]));
  assert.equal(answer.choices[0].message.content, await saidByVLLM(TEXTS[0]));
  const { prompt_tokens, completion_tokens, total_tokens } = answer.usage;
  assert.equal(total_tokens, prompt_tokens + completion_tokens);
});

check("stream", "a streamed chat is vLLM's", async () => {
  assert.equal(await streamed(TEXTS[0]), await saidByVLLM(TEXTS[0]));
});

check("stream", "the helper for streams reads it to its end", async () => {
  const answer = await client.chat.completions.stream(chat(TEXTS[0])).finalChatCompletion();
  assert.equal(answer.choices[0].message.content, await saidByVLLM(TEXTS[0]));
});

check("usage", "the last chunk tells the usage", async () => {
  const fields = { stream: true, stream_options: { include_usage: true } };
  let last;
  for await (const chunk of await client.chat.completions.create(chat("Hi", fields))) last = chunk;
  assert.ok(last.usage.completion_tokens > 0);
});

check("text", "multi-byte text is vLLM's to the letter", async () => {
  for (const text of TEXTS) assert.equal(await streamed(text), await saidByVLLM(text));
});

check("tools", "a forced tool is called", async () => {
  const answer = await client.chat.completions.create(chat("Weather?", FORCED_TOOL));
  const call = answer.choices[0].message.tool_calls[0].function;
  assert.equal(call.name, "get_weather");
  assert.ok(CITIES.includes(JSON.parse(call.arguments).city));
});

check("tools-stream", "a forced tool is called in a stream", async () => {
  const stream = client.chat.completions.stream(chat("Weather?", FORCED_TOOL));
  const answer = await stream.finalChatCompletion();
  const call = answer.choices[0].message.tool_calls[0].function;
  assert.equal(call.name, "get_weather");
  assert.ok(CITIES.includes(JSON.parse(call.arguments).city));
});

check("schema", "an answer follows its schema", async () => {
  const json_schema = { name: "place", schema: PARAMETERS, strict: true };
  const fields = { response_format: { type: "json_schema", json_schema } };
  const answer = await client.chat.completions.parse(chat("Where?", fields));
  assert.ok(CITIES.includes(answer.choices[0].message.parsed.city));
});

check("logprobs", "every token has logprobs", async () => {
  const fields = { logprobs: true, top_logprobs: 2 };
  const answer = await client.chat.completions.create(chat("Hi", fields));
  assert.equal(answer.choices[0].logprobs.content.length, answer.usage.completion_tokens);
});

check("choices", "two choices are kept apart", async () => {
  const fields = { n: 2, temperature: 1, seed: 1 };
  const answer = await client.chat.completions.create(chat("Hi", fields));
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1]);
});

check("stop", "a stop word ends the text", async () => {
  const [stop, before] = suite.cut(await saidByVLLM(TEXTS[0]));
  const answer = await client.chat.completions.create(chat(TEXTS[0], { stop: [stop] }));
  assert.equal(answer.choices[0].message.content, before);
  assert.equal(answer.choices[0].finish_reason, "stop");
});

for (const stream of [false, true]) {
  check("completions", `a completion is vLLM's (stream ${stream})`, async () => {
    const body = { model: target.model, prompt: "Es war", temperature: 0, max_tokens: 30 };
    const answer = await client.completions.create({ ...body, stream });
    let said = "";
    if (stream) for await (const chunk of answer) said += chunk.choices[0].text;
    else said = answer.choices[0].text;
    assert.equal(said, (await suite.vllm("/v1/completions", body)).choices[0].text);
  });
}

check("responses", "a response is the chat's text", async () => {
  const answer = await client.responses.create({ ...asked, input: TEXTS[0] });
  assert.equal(answer.output_text, await saidByVLLM(TEXTS[0]));
});

check("responses-stream", "a streamed response is the chat's text", async () => {
  const answer = await client.responses.stream({ ...asked, input: TEXTS[1] }).finalResponse();
  assert.equal(answer.output_text, await saidByVLLM(TEXTS[1]));
});

check("responses-stored", "a stored response is read again", async () => {
  const made = await client.responses.create({ ...asked, input: TEXTS[0], store: true });
  const again = await client.responses.retrieve(made.id);
  assert.equal(again.output_text, made.output_text);
});

check("responses-stored", "a response in the background is cancelled", async () => {
  const fields = { background: true, store: true, max_output_tokens: suite.LONG, ignore_eos: true };
  const made = await client.responses.create({ ...asked, input: "Hi", ...fields });
  assert.equal((await client.responses.cancel(made.id)).status, "cancelled");
});

check("embeddings", "embeddings are vLLM's", async () => {
  const body = { model: target.embeddingsModel, input: TEXTS };
  const answer = await clientOf({ baseURL: target.embeddingsURL }).embeddings.create(body);
  suite.assertClose(answer.data.map((one) => one.embedding), await suite.embeddedByVLLM());
});

check(
  "error-key",
  "a wrong key raises its class",
  async () => {
    const wrong = clientOf({ apiKey: suite.WRONG_KEY });
    await assert.rejects(wrong.chat.completions.create(chat("Hi")), OpenAI.AuthenticationError);
  },
  suite.NEEDS_KEYS,
);

check("error-model", "an unknown model raises its class", async () => {
  const body = chat("Hi", { model: suite.UNKNOWN_MODEL });
  await assert.rejects(client.chat.completions.create(body), OpenAI.NotFoundError);
  const streaming = client.chat.completions.create({ ...body, stream: true });
  await assert.rejects(streaming, OpenAI.NotFoundError);
});

check("error-request", "a bad request raises its class", async () => {
  const body = chat("Hi", { temperature: -1 });
  await assert.rejects(client.chat.completions.create(body), OpenAI.BadRequestError);
  const long = chat(suite.TOO_LONG, { stream: true });
  await assert.rejects(client.chat.completions.create(long), OpenAI.BadRequestError);
});

check("leaving", "a client that leaves its stream stops vLLM", async () => {
  const fields = { stream: true, max_tokens: suite.LONG, ignore_eos: true };
  await suite.isLeft(async () => {
    for await (const _ of await client.chat.completions.create(chat("Hi", fields))) break;
  });
});

check("leaving", "a client that gives up waiting stops vLLM", async () => {
  const fields = { max_tokens: suite.LONG, ignore_eos: true };
  await suite.isLeft(async () => {
    const leaving = new AbortController();
    const { signal } = leaving;
    const waiting = client.chat.completions.create(chat("Hi", fields), { signal });
    const refused = assert.rejects(waiting, OpenAI.APIUserAbortError);
    await suite.untilBusy(true);
    leaving.abort();
    await refused;
  });
});

check("parallel", "parallel streams do not mix", async () => {
  const texts = [...Array(8).keys()].map((i) => `${TEXTS[i % 4]} ${i}`);
  const said = await Promise.all(texts.map(streamed));
  for (const [i, text] of texts.entries()) assert.equal(said[i], await saidByVLLM(text));
});
