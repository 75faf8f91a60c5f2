// The key goes to the proxy once, and a session comes back in a cookie that no script can read.

import { byId } from "./dom.js";

const form = byId("login");
const key = byId("key");
const error = byId("login-error");

// The status takes the place of the welcome.
const enter = async () => {
  document.title = "Status – runpod-openai-proxy";
  document.body.classList.remove("narrow");
  document.body.replaceChildren(byId("status").content);
  await import("./status.js");
};

const logIn = async () => {
  const headers = { authorization: `Bearer ${key.value.trim()}` };
  const answer = await fetch("/admin/session", { method: "POST", headers });
  if (answer.ok) {
    await enter();
    byId("main").focus();
    return;
  }
  const body = await answer.json().catch(() => null);
  error.textContent = body?.error?.message ?? `The proxy answered ${answer.status}.`;
  key.select();
};

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  error.textContent = "";
  try {
    await logIn();
  } catch {
    error.textContent = "The proxy cannot be reached, or this holds characters that no key has.";
  }
});

const session = await fetch("/admin/session", { cache: "no-store" }).catch(() => null);
if (session?.ok) await enter();
