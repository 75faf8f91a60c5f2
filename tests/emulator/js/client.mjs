// One call of RunPod's JavaScript client: node client.mjs BASE_URL API_KEY ENDPOINT_ID METHOD ARGUMENT...
// Arguments are JSON. What the call resolves to, or yields, is the last line printed, as JSON.
import runpodSdk from "runpod-sdk";

const [baseUrl, apiKey, endpointId, method, ...texts] = process.argv.slice(2);
const endpoint = runpodSdk(apiKey, { baseUrl }).endpoint(endpointId);
let found = endpoint[method](...texts.map((text) => JSON.parse(text)));
if (Symbol.asyncIterator in found) {
  const items = [];
  for await (const item of found) items.push(item);
  found = items;
}
try {
  console.log(JSON.stringify(await found));
} catch (error) {
  console.log(JSON.stringify({ thrown: error.response?.status ?? String(error) }));
}
