#!/usr/bin/env bash
# cline 3.0.65 (its command line, from npm), Node 20, Linux.
#
# `cline --json PROMPT` answers in its own process, and starts a hub beside it: a daemon of 230 MB
# in a session of its own, which lives on: in a CI job, a container or a test it is a process that
# no one asked for (`--zen` is what runs a prompt in the hub). `cline hub stop` ends it.
#
# Seen on 2026-11-28:
#   the command ended with exit code 0
#   of its home, 10 s later: one process with --cline-hub-daemon, in a session of its own
#   after `cline hub stop`: none
set -euo pipefail
folder="$(mktemp -d)"
server=""
hubs() { # the processes with that flag and our folder for their home
  local process
  for process in /proc/[0-9]*; do
    if { tr '\0' '\n' <"$process/environ" | grep -qxF "HOME=$folder"; } 2>/dev/null &&
      { tr '\0' '\n' <"$process/cmdline" | grep -qxF -- --cline-hub-daemon; } 2>/dev/null; then
      echo "${process#/proc/}"
    fi
  done
}
end() {
  local pid
  for pid in $server $(hubs); do kill -9 "$pid" 2>/dev/null || true; done
  rm -rf "$folder"
}
trap end EXIT
cd "$folder"
npm init -y >/dev/null
npm install --silent --ignore-scripts --no-audit --no-fund cline@3.0.65
cat > server.mjs <<'JS'
import http from "node:http";

const head = { id: "c", object: "chat.completion.chunk", created: 1, model: "m" };
const event = (delta, finish_reason) =>
  `data: ${JSON.stringify({ ...head, choices: [{ index: 0, delta, finish_reason }] })}\n\n`;
const server = http.createServer((request, response) => {
  request.resume();
  response.setHeader("content-type", "text/event-stream");
  response.end(
    `${event({ role: "assistant", content: "Hello." }, null)}${event({}, "stop")}data: [DONE]\n\n`,
  );
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
JS
node server.mjs >port &
server=$!
disown # so that bash says nothing of its end
until [ -s port ]; do sleep 0.1; done
# A port of its own for the hub, in place of one that another may have.
hub_port="$(node -e 'const free = require("net").createServer();
  free.listen(0, "127.0.0.1", () => { console.log(free.address().port); free.close(); });')"

cline() { # it finds nothing but loopback: it would look for news
  env HOME="$folder" CLINE_HUB_PORT="$hub_port" HTTP_PROXY=http://127.0.0.1:9 HTTPS_PROXY=http://127.0.0.1:9 \
    NO_PROXY=127.0.0.1 timeout 120 node node_modules/cline/bin/cline "$@" </dev/null >>log 2>&1
}
cline auth openai-compatible -k none -m m -b "http://127.0.0.1:$(cat port)/v1"
code=0
cline --json --auto-approve false -P openai-compatible -k none -m m "Hello! Who are you?" || code=$?
echo "the command ended with exit code $code"
sleep 10
left="$(hubs)"
session=""
for pid in $left; do session="$(ps -o sid= -p "$pid" | tr -d ' ')"; done
if [ -n "$left" ] && [ "$session" = "$left" ]; then
  echo "of its home, 10 s later: one process with --cline-hub-daemon, in a session of its own"
else
  echo "of its home, 10 s later: [$left], session [$session]"
fi
cline hub stop || true
sleep 5
after="$(hubs)"
echo "after \`cline hub stop\`: ${after:-none}"
if [ "$code" != 0 ] || [ -z "$left" ] || [ "$session" != "$left" ] || [ -n "$after" ]; then
  echo "CHANGED: the hub does not start, ends with the command, or is not stopped"
  exit 1
fi
