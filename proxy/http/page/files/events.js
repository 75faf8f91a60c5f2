// Server-sent events out of a response, as they come: { data } or { comment }, cut anywhere.

const parsed = (block) => {
  const lines = block.split("\n").map((line) => line.replace(/\r$/, ""));
  const after = (start) =>
    lines.filter((line) => line.startsWith(start)).map((line) => line.slice(start.length).trim());
  const data = after("data:");
  return data.length ? { data: data.join("\n") } : { comment: after(":").join(" ") };
};

export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    yield* blocks.map(parsed);
  }
}
