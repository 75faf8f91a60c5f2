// Keys: what they may do, made, rotated and revoked. A key is shown once, and kept nowhere here.

import { button, byId, day, fillTable, make } from "./dom.js";

const LIMITS = [
  ["requests_per_minute", "Requests a minute", 1],
  ["tokens_per_minute", "Tokens a minute", 1],
  ["max_requests", "Requests at once", 1],
  ["daily_budget", "Dollars a day", "any"],
  ["monthly_budget", "Dollars a month", "any"],
  ["daily_gpu_seconds", "Worker seconds a day", "any"],
  ["monthly_gpu_seconds", "Worker seconds a month", "any"],
  ["priority", "Priority", 1],
];
const RIGHTS = [
  ["may_warm", "wake workers"],
  ["may_name_tenants", "name tenants"],
  ["may_administer", "administer"],
];

const trouble = byId("keys-trouble");
const form = byId("create-form");
const made = byId("made");
const sure = byId("sure");

const call = async (method, path, body) => {
  const headers = body === undefined ? {} : { "content-type": "application/json" };
  const answer = await fetch(path, { method, headers, body: JSON.stringify(body) });
  const told = await answer.json().catch(() => null);
  if (answer.status === 401) location.reload();
  if (!answer.ok) throw new Error(told?.error?.message ?? `The proxy answered ${answer.status}.`);
  return told;
};

const attempt = async (work) => {
  trouble.textContent = "";
  try {
    await work();
  } catch (error) {
    trouble.textContent = error.message;
  }
};

const pathOf = (name, action = "") => `/admin/keys/${encodeURIComponent(name)}${action}`;

const rightsOf = (key) => RIGHTS.filter(([right]) => key[right]).map(([, words]) => words);

const limitsOf = (key) =>
  LIMITS.filter(([name]) => key[name] !== null && !(name === "priority" && key[name] === 1))
    .map(([name, words]) => `${words.toLowerCase()}: ${key[name]}`)
    .join(", ");

const stateOf = (key) =>
  key.state === "active" && key.expires ? `active until ${day(key.expires)}` : key.state;

const changesOf = (key) => {
  if (key.source !== "database") return "in the configuration";
  if (key.state === "revoked") return "";
  return make(
    "span",
    {},
    button("Rotate", () => rotate(key.name), { "aria-label": `Rotate ${key.name}` }),
    " ",
    button("Revoke", () => revoke(key.name), {
      "aria-label": `Revoke ${key.name}`,
      class: "danger",
    }),
  );
};

const load = async () => {
  const { data } = await call("GET", "/admin/keys");
  const rows = data.map((key) => [
    key.name,
    stateOf(key),
    key.models === null ? "all" : key.models.join(", "),
    rightsOf(key).join(", "),
    limitsOf(key),
    changesOf(key),
  ]);
  fillTable(byId("keys-table"), rows, "There are no keys.");
};

export const showKeys = () => attempt(load);

// Shows a key that was made, and forgets it when the dialog is closed.
const showOnce = (title, secret) => {
  byId("made-title").textContent = title;
  byId("made-key").value = secret;
  made.showModal();
  byId("made-key").select();
};

const isSure = (title, text, yes) =>
  new Promise((decide) => {
    byId("sure-title").textContent = title;
    byId("sure-text").textContent = text;
    byId("sure-yes").textContent = yes;
    sure.returnValue = "";
    sure.addEventListener("close", () => decide(sure.returnValue === "yes"), { once: true });
    sure.showModal();
  });

const rotate = async (name) => {
  const text = "It gets another secret. The former one is refused within a second.";
  if (!(await isSure(`Rotate ${name}?`, text, "Rotate"))) return;
  await attempt(async () => {
    const { key } = await call("POST", pathOf(name, "/rotate"));
    showOnce(`The new key of ${name}`, key);
    await load();
  });
};

const revoke = async (name) => {
  const text = "It is refused within a second, and cannot come back. Answers that run go on.";
  if (!(await isSure(`Revoke ${name}?`, text, "Revoke"))) return;
  await attempt(async () => {
    await call("DELETE", pathOf(name));
    await load();
  });
};

const field = (name, words, attributes) =>
  make("label", {}, words, make("input", { name, type: "text", ...attributes }));

const drawForm = () => {
  form.append(
    field("name", "Name", { required: "", maxlength: 100, pattern: "[A-Za-z0-9._@\\-]+" }),
    field("models", "Models, by commas (all if empty)", {}),
    field("days", "Days until it expires (never if empty)", { type: "number", min: 1, step: 1 }),
    ...LIMITS.map(([name, words, step]) =>
      field(name, words, { type: "number", min: step === 1 ? 1 : 0, step }),
    ),
    ...RIGHTS.map(([name, words]) =>
      make("label", {}, make("input", { name, type: "checkbox" }), ` may ${words}`),
    ),
    make("button", { type: "submit" }, "Create"),
  );
};

const wanted = () => {
  const given = new FormData(form);
  const number = (name) => (given.get(name) === "" ? null : Number(given.get(name)));
  const models = given.get("models").split(",").map((name) => name.trim()).filter(Boolean);
  const limits = LIMITS.map(([name]) => [name, number(name)]).filter(([, value]) => value !== null);
  return {
    name: given.get("name").trim(),
    models: models.length ? models : null,
    expires: given.get("days") === "" ? null : `${given.get("days")}d`,
    ...Object.fromEntries(limits),
    ...Object.fromEntries(RIGHTS.map(([name]) => [name, given.has(name)])),
  };
};

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  await attempt(async () => {
    const key = wanted();
    const { key: secret } = await call("POST", "/admin/keys", key);
    form.reset();
    showOnce(`The key of ${key.name}`, secret);
    await load();
  });
});
byId("made-copy").addEventListener("click", async () => {
  byId("made-key").select();
  await navigator.clipboard?.writeText(byId("made-key").value);
});
byId("made-close").addEventListener("click", () => made.close());
made.addEventListener("close", () => {
  byId("made-key").value = "";
});
byId("sure-yes").addEventListener("click", () => sure.close("yes"));
byId("sure-no").addEventListener("click", () => sure.close(""));
drawForm();
