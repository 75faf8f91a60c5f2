#!/usr/bin/env bash
# @langchain/openai 1.6.0 (@langchain/core 1.4.0) on openai 7.59.0, Node 20.
#
# LangChain.js turns the SDK's retries off (maxRetries: 0) and repeats a request by itself when the
# timeout has passed, so each attempt says x-stainless-retry-count: 0, and waits one to two seconds
# before the first, twice as long before each next: a server cannot tell its retries from three
# people who ask the same. With the SDK alone the header counts: 0, 1, 2.
#
# Seen on 2026-11-28:
#   LangChain.js: retry counts 0,0,0
#   the SDK:      retry counts 0,1,2
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm init -y >/dev/null
npm install --silent --ignore-scripts --no-audit --no-fund \
  @langchain/openai@1.6.0 @langchain/core@1.4.0 openai@7.59.0
cat > run.mjs <<'JS'
import http from "node:http";
import { ChatOpenAI } from "@langchain/openai";
import OpenAI from "openai";

let counts = [];
const server = http.createServer((request) => {
  counts.push(request.headers["x-stainless-retry-count"]); // and no answer
  request.resume();
});
await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
const baseURL = `http://127.0.0.1:${server.address().port}/v1`;

async function counted(ask) {
  counts = [];
  await ask().catch(() => {});
  return counts.join(",");
}

const options = { timeout: 300, maxRetries: 2 };
const chat = new ChatOpenAI({ model: "m", apiKey: "none", configuration: { baseURL }, ...options });
const client = new OpenAI({ baseURL, apiKey: "none", ...options });
const body = { model: "m", messages: [{ role: "user", content: "hi" }] };
const langchain = await counted(() => chat.invoke("hi"));
const sdk = await counted(() => client.chat.completions.create(body));
console.log(`LangChain.js: retry counts ${langchain}`);
console.log(`the SDK:      retry counts ${sdk}`);
if (langchain !== "0,0,0" || sdk !== "0,1,2") {
  console.log("CHANGED: the counts are others");
  process.exit(1);
}
process.exit(0);
JS
NO_PROXY=127.0.0.1 node run.mjs
