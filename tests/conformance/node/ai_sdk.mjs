// Vercel's AI SDK with `@ai-sdk/openai-compatible`, its provider for servers such as ours.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";

import { checksOf } from "./ai_sdk_checks.mjs";
import { NEEDS_KEYS, check, target } from "./target.mjs";

const providerOf = (fields = {}) =>
  createOpenAICompatible({
    name: "runpod",
    baseURL: target.baseURL,
    apiKey: target.apiKey,
    includeUsage: true,
    supportsStructuredOutputs: true,
    ...fields,
  });
const checks = checksOf({ providerOf, strict: true });

check("chat", "a chat is vLLM's", checks.chat);
check("stream", "a streamed chat is vLLM's", checks.stream);
check("usage", "a stream tells its usage", checks.usage);
check("text", "multi-byte text is vLLM's to the letter", checks.text);
check("tools", "a forced tool is called", checks.tools);
check("tools-stream", "a forced tool is called in a stream", checks.streamTools);
check("schema", "an answer follows its schema", checks.schema);
check("stop", "a stop word ends the text", checks.stop);
check("completions", "a completion is vLLM's", () =>
  checks.completion((provider, name) => provider.completionModel(name)),
);
check("embeddings", "embeddings are vLLM's", checks.embeddings);
check("error-key", "a wrong key raises its class", checks.wrongKey, NEEDS_KEYS);
check("error-model", "an unknown model raises its class", checks.unknownModel);
check("error-request", "a bad request raises its class", checks.badRequest);
check("leaving", "a client that leaves its stream stops vLLM", checks.leaving);
check("parallel", "parallel streams do not mix", checks.parallel);
