// node client.mjs CALL BASE_URL KEY ARGUMENTS...: one call of a client, its outcome as JSON.

import { createOpenAI } from "@ai-sdk/openai";
import { ChatOpenAI } from "@langchain/openai";
import { streamText } from "ai";
import OpenAI from "openai";
import OpenAI6 from "openai-6";

const [name, baseURL, apiKey, ...words] = process.argv.slice(2);
const CLASSES = { 6: OpenAI6, 7: OpenAI };
const clientOf = (version, options = {}) => new CLASSES[version]({ baseURL, apiKey, ...options });

const calls = {
  async chat(version, body, options = {}, ofCall = {}) {
    const answer = await clientOf(version, options).chat.completions.create(body, ofCall);
    return { content: answer.choices[0].message.content };
  },

  // Aborts after a while, as a page does whose user presses "stop".
  async abortedChat(version, body, seconds) {
    const signal = AbortSignal.timeout(seconds * 1000);
    await clientOf(version).chat.completions.create(body, { signal });
    return {};
  },

  async langchainChat(model, text, options) {
    const configuration = { baseURL };
    const chat = new ChatOpenAI({ model, apiKey, configuration, ...options });
    return { content: (await chat.invoke(text)).content };
  },

  async streamedChat(version, body) {
    const stream = clientOf(version).chat.completions.stream(body);
    const answer = await stream.finalChatCompletion();
    return { id: answer.id, content: answer.choices[0].message.content };
  },

  async streamedResponse(version, body) {
    const kinds = [];
    try {
      const client = clientOf(version, { maxRetries: 0 });
      for await (const event of await client.responses.create({ ...body, stream: true }))
        kinds.push(event.type);
    } catch (error) {
      return { kinds, message: error.message, code: error.code, kind: error.constructor.name };
    }
    return { kinds };
  },

  async aiSdkResponse(model, prompt) {
    const errors = [];
    const provider = createOpenAI({ baseURL, apiKey });
    const onError = ({ error }) => errors.push(error?.message ?? JSON.stringify(error));
    const result = streamText({ model: provider(model), prompt, maxRetries: 0, onError });
    let text = "";
    for await (const piece of result.textStream) text += piece;
    return { text, errors };
  },
};

try {
  console.log(JSON.stringify(await calls[name](...words.map((word) => JSON.parse(word)))));
} catch (error) {
  console.log(JSON.stringify({ error: error.constructor.name, message: error.message }));
}
process.exit(0);
