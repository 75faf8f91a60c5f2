// RunPod's own provider for Vercel's AI SDK, `@runpod/ai-sdk-provider`, pointed at the base URL.

import { createRunpod } from "@runpod/ai-sdk-provider";

import { checksOf } from "./ai_sdk_checks.mjs";
import { NEEDS_KEYS, check, target } from "./target.mjs";

const providerOf = (fields = {}) =>
  createRunpod({ baseURL: target.baseURL, apiKey: target.apiKey, ...fields });
const checks = checksOf({ providerOf });

check("chat", "a chat is vLLM's", checks.chat);
check("stream", "a streamed chat is vLLM's", checks.stream);
check("text", "multi-byte text is vLLM's to the letter", checks.text);
check("tools", "a forced tool is called", checks.tools);
check("tools-stream", "a forced tool is called in a stream", checks.streamTools);
check("stop", "a stop word ends the text", checks.stop);
check("error-key", "a wrong key raises its class", checks.wrongKey, NEEDS_KEYS);
check("error-model", "an unknown model raises its class", checks.unknownModel);
check("error-request", "a bad request raises its class", checks.badRequest);
check("leaving", "a client that leaves its stream stops vLLM", checks.leaving);
check("parallel", "parallel streams do not mix", checks.parallel);
